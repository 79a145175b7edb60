# What the demo's second guest does on the clone: looks for what was durable before the snapshot, then writes files of
# its own. FILES, FILE_MIB, LATER (the first round that began after the snapshot) and expected(), which prints the
# checksums, are set above this text; lines that begin with DEMO- are read by the host.
set -e

expected >/run/expected
if ! md5sum -c /run/expected >/run/verdict; then
    grep -v ': OK$' /run/verdict
    exit 1
fi
if [ -e /data/round-$LATER ]; then
    echo "round $LATER, begun after the snapshot, is in the clone"
    exit 1
fi
echo "DEMO-VERIFIED $(wc -l </run/expected)"

mkdir /data/own
for file in $(seq $FILES); do
    dd if=/dev/urandom of=/run/new bs=1M count=$FILE_MIB 2>/dev/null
    dd if=/run/new of=/data/own/file-$file bs=64k conv=fsync 2>/dev/null
    md5=$(md5sum </run/new)
    echo "DEMO-SUM ${md5%% *} /data/own/file-$file"
done
