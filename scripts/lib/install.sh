# Installs what a script needs and the machine lacks, by apt-get (Debian and its kin), and says so.
#
# Sourced, not run. Leaves alone what is there; never asks anything.

# need COMMAND PACKAGE...: the packages, unless the command is there.
need() {
    local command=$1
    shift
    command -v "$command" >/dev/null && return
    apt_install "$command" "$@"
}

# apt_install WHAT PACKAGE...
apt_install() {
    local what=$1
    shift
    if ! command -v apt-get >/dev/null; then
        echo "$what is missing, and this machine has no apt-get: install $* by hand, then run this again" >&2
        exit 1
    fi
    if [ "$(id -u)" -ne 0 ]; then
        echo "$what is missing: run \`sudo apt-get install $*\`, then this again" >&2
        exit 1
    fi
    echo "$what is missing: installing $* with apt-get"
    local log
    log=$(mktemp)
    if ! { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@"; } \
        </dev/null >"$log" 2>&1; then
        tail -n 20 "$log" >&2
        rm -f "$log"
        echo "installing $* failed" >&2
        exit 1
    fi
    rm -f "$log"
}

# What building and mounting take: the linker and C compiler that Rust and one dependency call, and fusermount3.
need_build_tools() {
    need cc gcc libc6-dev
}

need_fuse() {
    need fusermount3 fuse3
    if [ ! -c /dev/fuse ]; then
        echo "/dev/fuse is missing: run \`modprobe fuse\` as root; in a container, start it with" \
            "\`--device /dev/fuse --cap-add SYS_ADMIN\`" >&2
        exit 1
    fi
}

# The file system exerciser, from crates.io; it tests nothing but what it is pointed at, so it need not be fast.
need_fsx() {
    # Tests call it by its name, and what cargo installs is not everywhere in the path.
    export PATH="$PATH:${CARGO_HOME:-$HOME/.cargo}/bin"
    command -v fsx >/dev/null && return
    echo "fsx is missing: building it; this takes a minute, once"
    CARGO_PROFILE_DEV_DEBUG=0 cargo install fsx --locked --version 0.3.2 --debug --quiet
}
