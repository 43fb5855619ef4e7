#!/bin/sh
# What gantool.def and Dockerfile have in common: from the files in /opt/src to the virtual environment /opt/gantool.
# $INDEX: one more package index, may be empty. $REVISION: the commit, for the record.
set -eu
src=/opt/src home=/opt/gantool
umask 022 # whoever runs the image is not who builds it

# Locks hold for one version of Python, which their second line names.
wanted=$(sed -n '2s/.*Python \(3\.[0-9]*\).*/\1/p' $src/requirements.lock)
found=$(python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')
[ "$wanted" = "$found" ] || { echo "the base image has Python $found, the lock is for Python $wanted" >&2; exit 1; }

# NCCL looks for these libraries to use InfiniBand. Without them it is silent, and slow: it takes TCP.
export DEBIAN_FRONTEND=noninteractive
apt-get update
apt-get install --yes --no-install-recommends libibverbs1 ibverbs-providers
rm -rf /var/lib/apt/lists/*

python3 -m venv $home
pip() { $home/bin/python -m pip --no-cache-dir --disable-pip-version-check "$@"; }
pip install --require-hashes --only-binary :all: ${INDEX:+--extra-index-url "$INDEX"} --requirement $src/requirements.lock
pip install --no-deps --no-build-isolation --no-index $src
# torchvision is not in the lock for the CPU: README.md says why.
checked=$(pip check) || true # it says something in any case, unless it does not run
broken=$(echo "$checked" | grep --invert-match --regexp='^No broken' --regexp='requires torchvision, which is not') || true
[ -n "$checked" ] && [ -z "$broken" ] || { echo "pip check failed: $broken" >&2; exit 1; }

# What is in the image, and one digest of it all: of every Python package (RECORD holds the digests of its files), of
# Python's version and build, and of the names and versions of the system's packages. Two builds with the same contents
# have the same digest, unlike their files.
pip list --format=freeze >$home/installed.txt
dpkg-query --show >$home/system.txt
digest=$({ find $home/lib -path '*.dist-info/RECORD' | LC_ALL=C sort | xargs cat; cat $home/system.txt; python3 -VV; } | sha256sum)
printf '{"digest": "sha256:%s", "revision": "%s"}\n' "${digest%% *}" "${REVISION:-unknown}" >$home/image.json
rm -rf $src
