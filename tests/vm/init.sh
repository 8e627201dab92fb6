#!/bin/sh
# The first process: puts a disk over the host's tree, which is read-only, and hands over to a command in there.
set -e
. /settings
for module in /modules/*; do insmod "$module"; done
ip link set lo up

mount -t devtmpfs -o nosuid devtmpfs /dev
mount -t ext4 -o noatime /dev/vda /disk
mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=512000,cache=loose host /host
mkdir /disk/upper /disk/work
mount -t overlay -o lowerdir=/host,upperdir=/disk/upper,workdir=/disk/work overlay /new
# Not every mount can lie upon an overlay.
for directory in $empty; do
    mkdir -p "/disk/$directory" "/new/$directory"
    mount --bind "/disk/$directory" "/new/$directory"
done
chmod 1777 /new/tmp

cd /new
mount -t proc -o nosuid,nodev,noexec proc proc
mount -t sysfs -o nosuid,nodev,noexec sysfs sys
mount -t cgroup2 -o nosuid,nodev,noexec cgroup2 sys/fs/cgroup
mount --move /dev dev
mkdir dev/pts dev/shm
mount -t devpts -o nosuid,noexec,mode=620,ptmxmode=666 devpts dev/pts
mount -t tmpfs -o nosuid,nodev tmpfs dev/shm

exec switch_root /new "$@"
