# What the demo's guest does on the disk that our server serves. FILES and FILE_MIB are set above this text.
# Lines that begin with DEMO- are read by the host.
set -e
total=$((FILES * FILE_MIB))

uptime() {
    read -r up idle </proc/uptime
    echo "$up"
}

# Content from the kernel's generator, made in memory first: the time below is then the disk's alone.
dd if=/dev/urandom of=/run/source bs=1M count=$total 2>/dev/null

echo "DEMO-PHASE the guest writes $FILES files of $FILE_MIB MiB"
from=$(uptime)
for number in $(seq $FILES); do
    dd if=/run/source of=/data/file-$number bs=1M count=$FILE_MIB skip=$(((number - 1) * FILE_MIB)) 2>/dev/null
done
sync
echo "DEMO-WRITE bytes=$((total << 20)) from=$from to=$(uptime)"

# Many small files: names and inodes instead of content.
mkdir /data/small
for number in $(seq 200); do
    echo "small file $number" >/data/small/$number
done
sync
rm /data/small/*7
ls -l /data

# Dropped caches: what is read now comes from the server.
echo 3 >/proc/sys/vm/drop_caches
echo "DEMO-PHASE the guest reads everything back"
from=$(uptime)
cat /data/file-* >/dev/null
echo "DEMO-READ bytes=$((total << 20)) from=$from to=$(uptime)"

echo 3 >/proc/sys/vm/drop_caches
for number in $(seq $FILES); do
    name=/data/file-$number
    dd if=/run/source bs=1M count=$FILE_MIB skip=$(((number - 1) * FILE_MIB)) 2>/dev/null | cmp - "$name"
    sum=$(md5sum <"$name")
    echo "DEMO-SUM ${sum%% *} $name"
done
# The order of these numbers is the kernel's: Documentation/block/stat.rst.
echo "DEMO-DISK $(cat /sys/block/vda/stat)"
