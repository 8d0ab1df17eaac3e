/* Voxel ray marcher: one source for the CPU (C, OpenMP) and CUDA (NVRTC). float32, no fused multiply-add. */
#ifdef __CUDACC__
#define FN __device__ static inline
typedef unsigned char u8; typedef unsigned int u32; typedef long long i64;
#else
#include <math.h>
#include <stdint.h>
#define FN static inline
typedef uint8_t u8; typedef uint32_t u32; typedef int64_t i64;
#endif
#define SX 256
#define SZ 256
#define SY 64
#define FAR 60.0f
#define TEXELS 341
FN u32 mixh(u32 h){h^=h>>16;h*=0x7feb352du;h^=h>>15;h*=0x846ca68bu;h^=h>>16;return h;}
FN void sky(float dx,float dy,float dz,float*c){
  float t=dy<0.f?0.f:dy; float s=1.f-t; s=s*s;
  c[0]=90.f+106.f*s; c[1]=146.f+74.f*s; c[2]=226.f+18.f*s;
  float d=dx*0.4851f+dy*0.7276f+dz*0.4851f; if(d>0.988f){c[0]=255.f;c[1]=244.f;c[2]=200.f;}
}
/* pixel footprint `cone` = world size of a sample per unit distance */
FN int march(const u8*w,const u8*atlas,float ox,float oy,float oz,float dx,float dy,float dz,float cone,float*c,float*depth){
  int x=(int)floorf(ox),y=(int)floorf(oy),z=(int)floorf(oz);
  int sx=dx<0?-1:1,sy=dy<0?-1:1,sz=dz<0?-1:1;
  float ix=dx==0.f?1e30f:1.f/fabsf(dx),iy=dy==0.f?1e30f:1.f/fabsf(dy),iz=dz==0.f?1e30f:1.f/fabsf(dz);
  float tx=(sx>0?(float)(x+1)-ox:ox-(float)x)*ix,ty=(sy>0?(float)(y+1)-oy:oy-(float)y)*iy,tz=(sz>0?(float)(z+1)-oz:oz-(float)z)*iz;
  float t=0.f;int face=-1,id=0;
  for(int n=0;n<180;n++){
    if(y>=SY&&sy>0)break; if(y<0)break;
    if(x<0||x>=SX||z<0||z>=SZ)break;
    if(y<SY){id=w[((i64)x*SZ+z)*SY+y]; if(id&&face>=0)break; if(id)id=0;}
    if(tx<=ty&&tx<=tz){t=tx;tx+=ix;x+=sx;face=0;}
    else if(tz<=ty){t=tz;tz+=iz;z+=sz;face=2;}
    else{t=ty;ty+=iy;y+=sy;face=1;}
    id=0; if(t>FAR)break;
  }
  float sk[3];sky(dx,dy,dz,sk); *depth=id?t:1000.f;
  if(!id){c[0]=sk[0];c[1]=sk[1];c[2]=sk[2];return 0;}
  float px=ox+dx*t,py=oy+dy*t,pz=oz+dz*t,u,v,ca;
  if(face==0){u=pz-floorf(pz);v=1.f-(py-floorf(py));ca=fabsf(dx);}
  else if(face==2){u=px-floorf(px);v=1.f-(py-floorf(py));ca=fabsf(dz);}
  else{u=px-floorf(px);v=pz-floorf(pz);ca=fabsf(dy);}
  int f=face==1?(sy<0?1:2):0;
  float foot=cone*t*16.f/(0.35f+0.65f*ca); int lod=foot<1.2f?0:foot<2.4f?1:foot<4.8f?2:foot<9.6f?3:4;
  int size=16>>lod,off=lod==0?0:lod==1?256:lod==2?320:lod==3?336:340;
  int iu=(int)(u*(float)size),iv=(int)(v*(float)size); if(iu>=size)iu=size-1; if(iv>=size)iv=size-1;
  const u8*p=atlas+((id*3+f)*TEXELS+off+iv*size+iu)*3;
  u32 h=mixh((u32)x*73856093u^(u32)y*19349663u^(u32)z*83492791u);
  float tint=0.93f+0.14f*(float)(h&255u)/255.f;
  float sh=face==1?(sy<0?1.0f:0.5f):face==0?(sx<0?0.86f:0.62f):(sz<0?0.78f:0.68f);
  float g=t/FAR;g=g*g*g; if(g>1.f)g=1.f; float k=tint*sh;
  for(int i=0;i<3;i++){float q=(float)p[i]*k; if(q>255.f)q=255.f; c[i]=q*(1.f-g)+sk[i]*g;}
  return id;
}
/* cams: per frame 12 floats: eye xyz, right xyz*tanx, up xyz*tany, forward xyz */
FN void pixel(const u8*worlds,const i64*wi,const float*cams,const u8*atlas,int H,int W,int S,i64 n,int py,int px,u8*rgb,float*depth,u8*ids){
  const float*m=cams+n*12; const u8*w=worlds+wi[n]*((i64)SX*SZ*SY);
  float acc[3]={0,0,0}; float cone=2.f*sqrtf(m[6]*m[6]+m[7]*m[7]+m[8]*m[8])/(float)(H*S);
  for(int j=0;j<S;j++)for(int i=0;i<S;i++){
    float a=2.f*((float)px+((float)i+0.5f)/(float)S)/(float)W-1.f,b=1.f-2.f*((float)py+((float)j+0.5f)/(float)S)/(float)H;
    float dx=m[9]+a*m[3]+b*m[6],dy=m[10]+a*m[4]+b*m[7],dz=m[11]+a*m[5]+b*m[8];
    float r=1.f/sqrtf(dx*dx+dy*dy+dz*dz);float c[3],d; 
    march(w,atlas,m[0],m[1],m[2],dx*r,dy*r,dz*r,cone,c,&d);
    acc[0]+=c[0];acc[1]+=c[1];acc[2]+=c[2];
  }
  i64 o=(n*H+py)*W+px; float q=1.f/(float)(S*S);
  for(int i=0;i<3;i++)rgb[o*3+i]=(u8)(acc[i]*q+0.5f);
  if(depth||ids){
    float a=2.f*((float)px+0.5f)/(float)W-1.f,b=1.f-2.f*((float)py+0.5f)/(float)H;
    float dx=m[9]+a*m[3]+b*m[6],dy=m[10]+a*m[4]+b*m[7],dz=m[11]+a*m[5]+b*m[8];
    float r=1.f/sqrtf(dx*dx+dy*dy+dz*dz);float c[3],d; int id=march(w,atlas,m[0],m[1],m[2],dx*r,dy*r,dz*r,cone,c,&d);
    if(depth)depth[o]=d; if(ids)ids[o]=(u8)id;
  }
}
#ifdef __CUDACC__
/* One thread a pixel; a warp takes a tile of 8x4 pixels, whose rays walk through the same blocks. */
extern "C" __global__ void render(const u8*worlds,const i64*wi,const float*cams,const u8*atlas,int H,int W,int S,int N,int extra,u8*rgb,float*depth,u8*ids){
  i64 t=(i64)blockIdx.x*blockDim.x+threadIdx.x;
  int tw=(W+7)/8,th=(H+3)/4; i64 per=(i64)tw*th*32; i64 n=t/per; if(n>=N)return;
  int r=(int)(t-n*per),tile=r/32,k=r%32; int px=(tile%tw)*8+k%8,py=(tile/tw)*4+k/8;
  if(px>=W||py>=H)return;
  pixel(worlds,wi,cams,atlas,H,W,S,n,py,px,rgb,(extra&1)?depth:0,(extra&2)?ids:0);
}
#else
void render(const u8*worlds,const i64*wi,const float*cams,const u8*atlas,int H,int W,int S,int N,int extra,u8*rgb,float*depth,u8*ids){
  #pragma omp parallel for schedule(dynamic,8)
  for(i64 t=0;t<(i64)N*H;t++)for(int x=0;x<W;x++)pixel(worlds,wi,cams,atlas,H,W,S,t/H,(int)(t%H),x,rgb,(extra&1)?depth:0,(extra&2)?ids:0);
}
#endif
