# What the demo's first guest does on its volume: rounds of new files and one file that is rewritten, until the host
# writes "stop" to the second drive; with a rest after each round while "slow" stands there. FILES, FILE_MIB and
# ROUNDS_MAX are set above this text; lines that begin with DEMO- are read by the host.
set -e

uptime() {
    read -r up idle </proc/uptime
    echo "$up"
}

sum() {
    md5=$(md5sum <"$1")
    echo "${md5%% *}"
}

# What a user would feel: a small durable write, again and again, each with its time.
beat() {
    while [ ! -e /run/enough ]; do
        from=$(uptime)
        echo "$from" | dd of=/data/beat conv=notrunc,fsync 2>/dev/null
        echo "DEMO-BEAT from=$from to=$(uptime)"
        usleep 50000
    done
}

# Whether the host's order is this one.
told() {
    [ "$(dd if=/dev/vdb bs=512 count=1 iflag=direct 2>/dev/null | head -n 1)" = "$1" ]
}

# A file that is written over: old blocks that a snapshot has to keep. Not touched within a round.
rewrite() {
    dd if=/run/new-1 of=/data/rewritten bs=64k conv=notrunc,fsync 2>/dev/null
    echo "$(sum /run/new-1)  /data/rewritten" >/run/rewritten-sum
    echo "DEMO-SUM $(sum /run/new-1) /data/rewritten"
}

# Only writing lies between "begins" and "ends"; a file's checksum is said once the file is durable.
write_round() {
    echo "DEMO-ROUND $1 begins"
    for file in $(seq $FILES); do
        name=/data/round-$1/file-$file
        dd if=/run/new-$file of=$name bs=64k conv=fsync 2>/dev/null
        read -r md5 </run/sum-$file
        echo "$md5  $name" >>/run/sums
        echo "DEMO-SUM $md5 $name"
    done
    echo "DEMO-ROUND $1 ends"
}

beat &
beats=$!
round=1
until told stop; do
    [ $round -le $ROUNDS_MAX ] || { echo "nobody stopped the rounds"; exit 1; }
    for file in $(seq $FILES); do
        dd if=/dev/urandom of=/run/new-$file bs=1M count=$FILE_MIB 2>/dev/null
        sum /run/new-$file >/run/sum-$file
    done
    rewrite
    mkdir /data/round-$round
    write_round $round
    round=$((round + 1))
    if told slow; then sleep 2; fi
done
: >/run/enough
wait $beats

# Dropped caches: what is compared now comes from the volume, not from this guest's memory.
sync
echo 3 >/proc/sys/vm/drop_caches
cat /run/rewritten-sum >>/run/sums
if ! md5sum -c /run/sums >/run/verdict; then
    grep -v ': OK$' /run/verdict
    exit 1
fi
echo "DEMO-VERIFIED $(wc -l </run/sums)"
