# A dev server, mounts on it and a folder for them, taken away at the end: for scripts/soak and scripts/bench.
#
# Sourced, not run. `$rig` is the folder, `$rig_url` the server, `$program` the binary; `rig_mount NAME` mounts the
# prefix NAME of the bucket at `$rig/NAME`.

rig= rig_url= rig_server= rig_mounts=() program=${OSSFUSE_BIN:-}
# What the caller has set for mounts of his own has no place here.
for variable in $(compgen -e); do
    case $variable in
    OSSFUSE_BIN | OSSFUSE_SOAK_* | OSSFUSE_BENCH_*) export -n "$variable" ;;
    OSS_* | OSSFUSE_*) unset "$variable" ;;
    esac
done
export OSS_ACCESS_KEY_ID=test-ak OSS_ACCESS_KEY_SECRET=test-sk

rig_fail() {
    echo "$*" >&2
    tail -n 20 "$rig"/state*/*/log >&2 2>/dev/null || true
    exit 1
}

# rig_end [STATUS]: of the script, unless its last command tells.
rig_end() {
    local status=${1:-$?}
    trap - EXIT
    for name in "${rig_mounts[@]}"; do
        "$program" umount "$rig/$name" --force >/dev/null 2>&1 || umount -l "$rig/$name" 2>/dev/null || true
    done
    if [ -n "$rig_server" ]; then
        kill "$rig_server" 2>/dev/null || true
        wait "$rig_server" 2>/dev/null || true
    fi
    [ -z "$rig" ] || rm -rf --one-file-system "$rig"
    exit "$status"
}

# rig_serve [OPTION]...: the folder, the program and the server, with further options of it.
rig_serve() {
    need_fuse
    if [ -z "$program" ]; then
        need_build_tools
        cargo build --release --locked
        program=${CARGO_TARGET_DIR:-target}/release/ossfuse
    fi
    program=$(realpath "$program")
    rig=$(mktemp -d -p "${OSSFUSE_SOAK_DIR:-${OSSFUSE_BENCH_DIR:-/var/tmp}}" ossfuse-rig.XXXXXX)
    trap rig_end EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    mkdir "$rig/run"
    export XDG_RUNTIME_DIR=$rig/run
    "$program" dev-server --data "$rig/data" --listen 127.0.0.1:0 --bucket bench "$@" >"$rig/server.out" &
    rig_server=$!
    for _ in $(seq 600); do
        rig_url=$(sed -n 's/^listening //p' "$rig/server.out")
        [ -z "$rig_url" ] || return 0
        sleep 0.1
    done
    rig_fail "the dev server does not come up"
}

# rig_mount NAME [OPTION]...
rig_mount() {
    local name=$1
    shift
    mkdir -p "$rig/$name"
    rig_mounts+=("$name")
    "$program" mount "bench:$name" "$rig/$name" --endpoint "$rig_url" --region cn-hangzhou --state-dir "$rig/state" "$@"
}

rig_umount() {
    "$program" umount "$rig/$1" --timeout 1h
}

# rig_object KEY: its bytes, as another client reads them.
rig_object() {
    python3 -B - "$rig_url/_dev/object/bench/$1" <<'PYTHON'
import shutil, sys, urllib.request
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
with opener.open(sys.argv[1], timeout=600) as reply:
    shutil.copyfileobj(reply, sys.stdout.buffer, 1 << 20)
PYTHON
}

# rig_counts: what the service counted, a line each operation.
rig_counts() {
    python3 -B - "$rig_url/_dev/stats" <<'PYTHON'
import json, sys, urllib.request
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
for name, count in json.load(opener.open(sys.argv[1], timeout=60))["requests"].items():
    moved = (count["bytes_in"] + count["bytes_out"]) / (1 << 20)
    print(f"{name:28} {count['ok']:8} ok {count['error']:4} errors {moved:10.1f} MiB")
PYTHON
}
