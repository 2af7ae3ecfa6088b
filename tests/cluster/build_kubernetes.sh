#!/usr/bin/env bash
# Builds Kubernetes from Debian 12's source package: no Docker, no image registry. Needs root only for what apt-get must install.
#   build_kubernetes.sh FOLDER COMMAND...     each COMMAND is a Kubernetes command (kube-apiserver, kubelet, ...) or `pause`
# FOLDER/bin gets the binaries; FOLDER/{src,go,gocache} make the next build quick and may be removed.
# About 4 minutes for the control plane on 2 cores and 1 more for a node's parts, 1.4 GB of memory, 2 GB of disk.
set -euo pipefail
folder=$1; shift
version=1.20.2
mkdir -p "$folder"/{bin,src}

say() { printf '==> %s\n' "$*"; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

need=()
for command in "$@"; do [ -x "$folder/bin/$command" ] || need+=("$command"); done
[ ${#need[@]} -gt 0 ] || exit 0

. /etc/os-release
[ "${ID:-} ${VERSION_ID:-}" = "debian 12" ] || die "only Debian 12 packages a Kubernetes source that builds alone, and this is ${PRETTY_NAME:-unknown}"

if [ ! -x /usr/lib/go-1.19/bin/go ] || [ ! -d /usr/share/gocode/src/github.com/modern-go/reflect2 ] || ! command -v gcc >/dev/null; then
    [ "$(id -u)" = 0 ] || die "the Go compiler is missing; run as root: apt-get install golang-1.19-go gcc libc6-dev golang-github-modern-go-reflect2-dev"
    say "installing the Go compiler"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
        golang-1.19-go gcc libc6-dev golang-github-modern-go-reflect2-dev >/dev/null
fi

cd "$folder/src"
if ! ls kubernetes_*.orig.tar.gz >/dev/null 2>&1; then
    say "fetching the source package of Kubernetes $version"
    # Source lists of our own: the machine's lists stay as they are, and its mirror is used.
    own=$(mktemp -d); trap 'rm -rf "$own"' EXIT
    mkdir -p "$own"/{parts,lists/partial}; chmod 755 "$own" "$own/parts"
    if [ -f /etc/apt/sources.list.d/debian.sources ]; then
        sed 's/^Types: .*$/Types: deb-src/' /etc/apt/sources.list.d/debian.sources >"$own/parts/source.sources"
    else
        sed -n 's/^deb /deb-src /p' /etc/apt/sources.list >"$own/parts/source.list"
    fi
    apt=(-o Dir::Etc::sourcelist=/dev/null -o Dir::Etc::sourceparts="$own/parts" -o Dir::State::lists="$own/lists" -o APT::Sandbox::User=root)
    apt-get "${apt[@]}" update -qq
    apt-get "${apt[@]}" source --download-only -qq kubernetes    # checks the archive's signature and the file's hash
fi

tree=$folder/go/src/k8s.io/kubernetes
if [ ! -f "$tree/.ready" ]; then
    say "unpacking"
    rm -rf "$tree"; mkdir -p "$tree"
    tar xf kubernetes_*.orig.tar.gz -C "$tree" --strip-components=1
    # The vendored reflect2 1.0.1 crashes under Go 1.18 and later; Debian packages 1.0.2.
    rm -rf "$tree/vendor/github.com/modern-go/reflect2"
    cp -r /usr/share/gocode/src/github.com/modern-go/reflect2 "$tree/vendor/github.com/modern-go/"
    touch "$tree/.ready"
fi

export PATH=/usr/lib/go-1.19/bin:$PATH GOPATH=$folder/go GOCACHE=$folder/gocache GO111MODULE=off CGO_ENABLED=0 GOFLAGS=
cd "$tree"
counted() { awk -v name="$1" '++n % 200 == 0 {printf "    %s: %d packages compiled\n", name, n; fflush()} /^#|: / {print}'; }

# The API server's OpenAPI definitions are generated; the archive leaves them out.
generated=pkg/generated/openapi/zz_generated.openapi.go
if [ ! -s "$generated" ] || ! grep -q 'func GetOpenAPIDefinitions' "$generated"; then
    say "generating OpenAPI definitions"
    go build -o "$folder/bin/openapi-gen" k8s.io/kubernetes/vendor/k8s.io/kube-openapi/cmd/openapi-gen
    inputs=$(grep -rl --include='*.go' '+k8s:openapi-gen=true' pkg/apis pkg/kubelet staging/src/k8s.io cmd |
        grep -Ev '/vendor/|/testdata/|/examples?/|sample-|zz_generated|_test\.go$' | xargs -n1 dirname | sort -u |
        sed -e 's#^staging/src/#k8s.io/kubernetes/vendor/#' -e '/^k8s.io/!s#^#k8s.io/kubernetes/#' | paste -sd,)
    "$folder/bin/openapi-gen" --logtostderr --input-dirs "$inputs" --output-package k8s.io/kubernetes/pkg/generated/openapi \
        --output-file-base zz_generated.openapi --go-header-file hack/boilerplate/boilerplate.generatego.txt \
        --output-base "$GOPATH/src" --report-filename /dev/null
fi

flags="-s -w"
for package in k8s.io/kubernetes/vendor/k8s.io/component-base/version k8s.io/kubernetes/vendor/k8s.io/client-go/pkg/version; do
    flags+=" -X $package.gitVersion=v$version -X $package.gitMajor=1 -X $package.gitMinor=20"
done
targets=() ; started=$SECONDS
for command in "${need[@]}"; do [ "$command" = pause ] || targets+=("k8s.io/kubernetes/cmd/$command"); done
if [ ${#targets[@]} -gt 0 ]; then
    say "compiling ${need[*]}; this takes some minutes, once"
    staging=$(mktemp -d "$folder/bin.XXXXXX")    # a build that is cut off must not leave half a binary in bin/
    go build -v -ldflags "$flags" -o "$staging/" "${targets[@]}" 2> >(counted kubernetes >&2)
    mv "$staging"/* "$folder/bin/"; rmdir "$staging"
fi
case " ${need[*]} " in *" pause "*) gcc -Os -static -o "$folder/bin/pause" build/pause/linux/pause.c ;; esac
say "built in $((SECONDS - started)) s: ${need[*]}"
