#!/usr/bin/env bash
# Try deploy/Dockerfile where no container engine is: as root on Linux, from the root of the checkout.
#
# A copy-on-write view of this machine takes the place of the base image. The RUN lines run in it as they stand; then it
# becomes read-only, and user 10001 serves an index in it, with no capability and no network but a loopback of its own.
#
#     sudo deploy/imitate.sh INDEX ENCODER PHOTOGRAPH
set -euo pipefail
test $# = 3 || { sed -n 's/^#     sudo/usage:/p' "$0"; exit 2; }
index=$(realpath "$1") encoder=$(realpath "$2") photograph=$(realpath "$3")
if [ -z "${IMITATE_INSIDE:-}" ]; then
    exec env IMITATE_INSIDE=1 unshare --mount --pid --fork --kill-child "$0" "$index" "$encoder" "$photograph"
fi

base=$(mktemp -d)
mount -t tmpfs -o size=4g tmpfs "$base"
mkdir "$base"/{upper,work,root}
mount -t overlay overlay -o "lowerdir=/,upperdir=$base/upper,workdir=$base/work" "$base/root"
root=$base/root
mkdir -p "$root"/{index,encoder,photographs,source}
mount --rbind /dev "$root/dev"
mount -t proc proc "$root/proc"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
cp -r pyproject.toml README.md LICENSE src "$root/source"

# Each RUN line, with its continuations joined and the value that ARG gives to EXTRAS.
extras=$(sed -n 's/^ARG EXTRAS=//p' deploy/Dockerfile)
sed -e ':join' -e '/\\$/{N;s/\\\n//;b join' -e '}' deploy/Dockerfile | sed -n 's/^RUN //p' | while read -r line; do
    echo "RUN $line" >&2
    chroot "$root" /usr/bin/env --chdir=/source EXTRAS="$extras" sh -euc "$line"
done
echo "environment: $(du --summarize --block-size=1M "$root/opt/vitrieve" | cut -f1) MiB"

# The interpreter of this machine may lie in a folder of root's; in the image everybody can run it.
folder=$(python3 -c 'import os, sys; print(os.path.dirname(os.path.realpath(sys.executable)))')
while [ "$folder" != / ]; do chmod a+rx "$root$folder"; folder=$(dirname "$folder"); done

# What a read-only container has: nothing to write to but /cache and /tmp.
for pair in "$index:index" "$encoder:encoder" "$(dirname "$photograph"):photographs"; do
    mount --bind "${pair%%:*}" "$root/${pair##*:}"
    mount -o remount,bind,ro "$root/${pair##*:}"
done
mount -t tmpfs -o size=1g,uid=10001,gid=10001,mode=0700 tmpfs "$root/cache"
mount -o remount,ro "$root"
cat > "$root/tmp/inside" <<'INSIDE'
export PATH=/opt/vitrieve/bin:$PATH VITRIEVE_CACHE=/cache PYTHONUNBUFFERED=1 VITRIEVE_TOKEN=only-for-this-trial-0123
cd /cache
! touch /opt/vitrieve/x 2>/dev/null || { echo "the file system can be written to"; exit 1; }
python -c 'import importlib.util; assert importlib.util.find_spec("torch") is None'
vitrieve serve --index /index --encoder /encoder --host 0.0.0.0 --port 8000 > /tmp/address 2> /tmp/log &
service=$!
trap 'kill $service 2>/dev/null' EXIT
tries=0
until python - "$1" <<'ASK'
import json, sys, urllib.request

def ask(path, data=None, **headers):
    return json.load(urllib.request.urlopen(urllib.request.Request("http://127.0.0.1:8000" + path, data, headers), timeout=20))

try:
    assert ask("/healthz") == {"status": "ok"}
    assert ask("/readyz", Host="10.1.2.3:8000") == {"status": "ready"}  # as kubelet asks
except OSError:
    sys.exit(1)
found = ask("/search?k=1", open(sys.argv[1], "rb").read(), Authorization="Bearer only-for-this-trial-0123")
print("nearest:", found["results"][0]["image_id"])
ASK
do
    kill -0 $service || { cat /tmp/log; exit 1; }
    tries=$((tries + 1)); [ $tries -lt 120 ] || { cat /tmp/log; exit 1; }
    sleep 0.5
done
echo "memory: $(sed -n 's/^VmRSS: *//p' /proc/$service/status) as user $(id -u)"
kill -TERM $service
status=0; wait $service || status=$?
trap - EXIT
echo "exit status after SIGTERM: $status"
exit $status
INSIDE
exec unshare --net chroot "$root" /bin/sh -c '
    ip link set lo up
    exec setpriv --reuid 10001 --regid 10001 --clear-groups --no-new-privs --bounding-set=-all --inh-caps=-all \
        sh -eu /tmp/inside "$1"' sh "/photographs/$(basename "$photograph")"
