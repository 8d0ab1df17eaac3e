"""Where training clips come from: worlds rendered on the fly, WorldMem-format clips, and the pools they fill."""
