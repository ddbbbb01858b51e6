#!/usr/bin/env bash
# Runs the fast tests and the tiny job on Debian 13 (trixie). Its Python 3.13 gets
# versions of JAX that no longer support older ones.
#
#   tools/test_on_trixie.sh FOLDER [REQUIREMENT...]
#
# Needs root and debootstrap. FOLDER keeps the system and one environment for
# each list of requirements (some 4 GB each), so a second run starts at the tests.
# REQUIREMENTs narrow what pip takes, for example 'jax==0.11.*'. The network is
# reached as outside: pip's environment variables, /etc/pip.conf and the
# certificates hold inside too. MIRROR is another Debian mirror than debootstrap's.
set -euo pipefail

folder=$(realpath -m "$1")
shift
cd "$(dirname "$0")/.."

# Mounts end with the namespace, whatever happens.
if [ -z "${IN_NAMESPACE:-}" ]; then
  IN_NAMESPACE=1 exec unshare --mount "$0" "$folder" "$@"
fi

if [ ! -e "$folder/.installed" ]; then
  debootstrap --variant=minbase \
    --include=ca-certificates,gcc,g++,libc6-dev,python3-dev,python3-venv \
    trixie "$folder" ${MIRROR:+"$MIRROR"}
  touch "$folder/.installed"
fi
for mount in dev proc sys; do
  mount --rbind "/$mount" "$folder/$mount"
done
for file in /etc/hosts /etc/resolv.conf /etc/pip.conf \
  /etc/ssl/certs/ca-certificates.crt; do
  if [ -e "$file" ]; then cp --dereference "$file" "$folder$file"; fi
done

name=$(printf %s "newest${*:+ $*}" | tr -cs 'a-zA-Z0-9.' -)
source="$folder/src/$name"
rm -rf "$source"
mkdir -p "$source"
git ls-files --cached --others --exclude-standard -z |
  tar --create --null --files-from=- | tar --extract --directory "$source"

# shellcheck disable=SC2016 # The inner shell expands them.
chroot "$folder" /bin/bash -euc '
  export HOME=/root LC_ALL=C.UTF-8 PATH=/usr/sbin:/usr/bin:/sbin:/bin
  cd "/src/$1"
  python="/environments/$1/bin/python"
  if [ ! -e "/environments/$1/.installed" ]; then
    python3 -m venv --clear "/environments/$1"
    "$python" -m pip install --quiet --disable-pip-version-check \
      --editable ".[beam,seqio,test]" "${@:2}"
    touch "/environments/$1/.installed"
  fi
  "$python" --version
  "$python" -m pip --disable-pip-version-check freeze --exclude-editable
  "$python" -m pytest -n 2 --dist loadscope -m "not slow"
  rm -rf runs
  "$python" -m infoprune_jax.main --config=configs/tiny.py --workdir=runs/tiny
' bash "$name" "$@"
