cd /tmp/cpx; N=/tmp/build-cp/app/sluice
t() { n=$1; shift; rm -rf mnt/o; sync; echo 3 > /proc/sys/vm/drop_caches; /usr/bin/time -f "$n %e s wall %U user %S sys" "$@"; }
t auto $N cp T mnt/o; t j16 $N cp -j16 T mnt/o;  t auto $N cp T mnt/o;rm -rf mnt/o; sync
h() { n=$1; shift; /usr/bin/time -f "hot $n %e s wall %U user %S sys" "$@"; rm -rf mnt/o; sync; }
tar cf - mnt/T >/dev/null;  for i in 1 2; do h auto $N cp mnt/T mnt/o; h j2 $N cp -j2 mnt/T mnt/o; h cpa cp -a mnt/T mnt/o; done; uptime
