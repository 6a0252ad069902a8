#!/bin/sh
# A base image with Python from Debian's packages, where no registry of images is in reach: sh debian-base.sh NAME [MIRROR]
# Needs root, debootstrap and podman. Bookworm has Python 3.11: TensorRT 8.6 and TF-TRT, which need 3.10, are then left out.
set -eu
name=${1:?the name of the image}
mirror=${2:-}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates bookworm "$folder/root" ${mirror:+"$mirror"}
# What a container never reads.
rm -rf "$folder"/root/var/cache/apt/* "$folder"/root/var/lib/apt/lists/* "$folder"/root/usr/share/doc/* \
    "$folder"/root/usr/share/man/* "$folder"/root/usr/share/locale/*
tar -C "$folder/root" -c . | podman import - "$name"
