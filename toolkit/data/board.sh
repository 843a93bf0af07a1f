#!/bin/sh
# Process 1 of an emulated board, started in namespaces of its own for mounts, processes and the host name: lays the
# board's files over the shared root file system, which stays read-only, and becomes its sshd.
set -eu
name=$1 root=$2 board=$3

hostname "$name"
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
for file in cpuinfo meminfo; do
    mount --bind "$board/system/proc/$file" "$root/proc/$file"
done
mount --bind -o ro "$board/system/sys" "$root/sys"
mount --bind "$board/home" "$root/home"
mount -t tmpfs -o mode=1777 tmp "$root/tmp"
mount -t tmpfs -o mode=755 run "$root/run"
mkdir "$root/run/sshd"
cp -r "$board/system/run/." "$root/run"

mount -t tmpfs -o mode=755 dev "$root/dev"
for device in null zero full random urandom tty; do
    touch "$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
done
mkdir -m 1777 "$root/dev/shm" "$root/dev/pts"
mount -t tmpfs -o mode=1777 shm "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"

mount -o remount,bind,ro "$root"
exec chroot "$root" /usr/sbin/sshd -D -e -f /run/edgephi/sshd_config
