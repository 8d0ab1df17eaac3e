#!/usr/bin/env bash
# Train the bundled `tiny` model: autoencoder, dense_short, dense, decmem, one after the other on one GPU.
#
#   bash trainers/recipes/tiny.sh [MINUTES]
#
# Stops by itself after MINUTES (default 9.2) of wall clock and continues where it stopped when called again; finished
# stages are skipped. Needs torch, numpy, safetensors and pyyaml only; the package need not be installed.
#
# Environment, with defaults:
#   RUNS=runs/tiny            folders of the stages
#   STAGES="autoencoder dense_short dense decmem"
#   AUTOENCODER_MIN=3.5 DENSE_SHORT_MIN=3 DENSE_MIN=5 DECMEM_MIN=6.5     length of each schedule
#   TAG=                      suffix of the decmem folder (for comparisons: TAG=-union)
#   SET=                      more settings for every dynamics stage, e.g. SET="model.fusion=union data.batch=12"
#   INIT=                     folder that the first of STAGES starts from
#   PACK=export               what goes to $OUT (if set) in parts of 15 MB: export, compact or none
#                             join them with: cat tiny.tar.* | tar xf -
set -euo pipefail
started=$SECONDS
limit=$(python3 -c "print(int(60 * ${1:-9.2}))")
cd "$(dirname "$0")/../.."

RUNS=${RUNS:-runs/tiny}
STAGES=${STAGES:-autoencoder dense_short dense decmem}
TAG=${TAG:-}
PACK=${PACK:-export}
mkdir -p "$RUNS"

RUNS=$(cd "$RUNS" && pwd)
[ -z "${INIT:-}" ] || INIT=$(cd "$INIT" && pwd)

# The package as links, for machines where it is not installed; Python finds it in the current folder.
links=$RUNS/.package
mkdir -p "$links/decmem_env"
for path in decmem_env/* model kernels trainers agents; do ln -sfn "$PWD/$path" "$links/decmem_env/${path##*/}"; done
cd "$links"
export PYTHONUNBUFFERED=1

settings=()
for pair in ${SET:-}; do settings+=(--set "$pair"); done

pack() {
  [ -n "${OUT:-}" ] && [ "$PACK" != none ] || return 0
  local files=() newest="" stage
  for stage in $STAGES; do
    local folder=$stage$([ "$stage" = decmem ] && echo "$TAG" || true)
    for name in config.yaml log.jsonl result.json curves.png; do
      [ -f "$RUNS/$folder/$name" ] && files+=("$folder/$name")
    done
    # A later stage's export holds the earlier ones' weights too.
    [ -d "$RUNS/$folder/$PACK" ] && newest=$folder/$PACK
  done
  [ -n "$newest" ] && files+=("$newest")
  [ ${#files[@]} -gt 0 ] && tar -C "$RUNS" -cf - "${files[@]}" | split -b 15M -d - "$OUT/tiny.tar."
  return 0
}
trap pack EXIT

# Whether the schedule of the stage in $folder is over: 1 or 0.
over() {
  [ -f "$folder/result.json" ] || { echo 0; return; }
  python3 -c "import json; print(int(json.load(open('$folder/result.json'))['progress'] >= 1))"
}

init=(${INIT:+--init "$INIT"})
for stage in $STAGES; do
  upper=$(echo "$stage" | tr '[:lower:]' '[:upper:]')_MIN
  case $stage in autoencoder) default=3.5 ;; dense_short) default=3 ;; dense) default=5 ;; *) default=6.5 ;; esac
  minutes=${!upper:-$default}
  folder=$RUNS/$stage
  [ "$stage" = decmem ] && folder=$folder$TAG
  if [ "$(over)" = 1 ] && [ -d "$folder/export" ]; then
    echo "== $stage is done"
    init=(--init "$folder")
    continue
  fi
  left=$(python3 -c "print(f'{($limit - ($SECONDS - $started)) / 60 - 0.1:.2f}')")
  # Less than 75 s would go to start-up and evaluation.
  if python3 -c "import sys; sys.exit(not $left < 1.25)"; then
    echo "== $stage: only $left minutes left, call again to continue"
    exit 0
  fi
  echo "== $stage: schedule $minutes min, this piece at most $left min"
  extra=()
  [ "$stage" = autoencoder ] || extra=("${settings[@]+"${settings[@]}"}")
  [ "$PACK" = compact ] && extra+=(--compact)
  piece=$(python3 -c "print(min($left, $minutes + 0.5))")
  python3 -m decmem_env.trainers "$stage" --out "$folder" ${init[@]+"${init[@]}"} --max-minutes "$piece" \
    --set "run.minutes=$minutes" ${extra[@]+"${extra[@]}"}
  if [ "$(over)" != 1 ]; then
    echo "== $stage is not over yet: call again to continue"
    exit 0
  fi
  init=(--init "$folder")
done
echo "== all stages done"
