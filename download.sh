#!/usr/bin/env bash
# Fetches the real data sets and the large checkpoints, so that nothing half-finished is ever left in place:
# a file is continued where it broke off, verified, unpacked beside its destination and renamed into it at the end.
# Archives are listed in assets/datasets.tsv, checkpoints in assets/weights/index.tsv. Needs bash and Python only.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
table=$here/assets/datasets.tsv weights=$here/assets/weights root=${DATA_DIR:-$here/data}
local_file='' staging='' targets=() selected=''
trap '[ -z "$staging" ] || rm -rf "$staging"' EXIT

die() { printf 'download.sh: %s\n' "$*" >&2; exit 1; }
size_of() { if [ -f "$1" ]; then wc -c <"$1" | tr -d ' '; else echo 0; fi; }
human() { awk -v b="$1" 'BEGIN { split("B kB MB GB TB PB", unit, " ")
  for (i = 1; b >= 1000 && i < 6; i++) b /= 1000; printf "%.1f %s", b, unit[i] }'; }

tool() { # digest ALGORITHM FILE | fetch URL PART | unpack ARCHIVE FOLDER BYTES
  python3 -I - "$@" <<'PY'
import hashlib, http.client, lzma, os, pathlib, signal, stat, sys, tarfile, urllib.request, zipfile, zlib

def digest(algorithm, path):
    result = hashlib.new(algorithm)
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            result.update(block)
    print(result.hexdigest())

def fetch_rest(url, part, have):
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    with urllib.request.urlopen(request, timeout=60) as reply:
        with open(part, "ab" if reply.status == 206 else "wb") as file:  # 200: no ranges here, start over
            total = file.tell() + int(reply.headers.get("Content-Length", 0))
            while block := reply.read(1 << 20):
                file.write(block)
                if sys.stderr.isatty():
                    print(f"{file.tell() // 10**6} of {total // 10**6 or '?'} MB ", end="\r", file=sys.stderr)
            if file.tell() < total:
                raise OSError(f"the connection was closed at {file.tell()} of {total} bytes")

def fetch(url, part):
    pathlib.Path(part).touch()
    before = -1
    while (have := os.path.getsize(part)) > before:  # go on as long as every call brings something
        before = have
        try:
            return fetch_rest(url, part, have)
        except (OSError, http.client.HTTPException) as error:
            if getattr(error, "code", None) == 416:  # nothing follows: the checksum tells whether it is complete
                return
            print(f"download.sh: {url}: {error}", file=sys.stderr)
    sys.exit(1)

def check(name, is_link=False):
    path = pathlib.PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or is_link:
        raise tarfile.TarError(f"unsafe entry {name!r}")

def count(size):
    global left
    left -= max(size, 512)  # an empty file takes room too
    if left < 0:
        raise tarfile.TarError("it holds more than the table allows: correct the size there if it has grown")

def unpack(archive, folder, limit):
    global left
    left = int(limit)
    if not hasattr(tarfile, "data_filter"):
        sys.exit("download.sh: unpacking safely needs Python 3.10.12, 3.11.4, 3.12 or later")
    try:
        if archive.endswith(".zip"):
            with zipfile.ZipFile(archive) as file:
                for entry in file.infolist():
                    check(entry.filename, is_link=stat.S_ISLNK(entry.external_attr >> 16))
                    count(entry.file_size)  # what is written is no longer, whatever follows
                    if entry.flag_bits & 1:
                        raise zipfile.BadZipFile("it is encrypted: get it without a password")
                file.extractall(folder)
        else:
            with tarfile.open(archive) as file:
                # data_filter refuses devices and links that lead out of the folder, but only mends absolute paths
                file.extractall(
                    folder, filter=lambda item, to: check(item.name) or count(item.size) or tarfile.data_filter(item, to)
                )
    except tarfile.ReadError as error:
        sys.exit(f"download.sh: {archive} is not unpacked: it is no whole tar, tar.gz or tar.xz archive")
    except (OSError, EOFError, ValueError, RuntimeError, tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError,
            zlib.error) as error:
        sys.exit(f"download.sh: {archive} is not unpacked: {error}")

signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends quietly; what has arrived stays
{"digest": digest, "fetch": fetch, "unpack": unpack}[sys.argv[1]](*sys.argv[2:])
PY
}

rows() { # TABLE COLUMNS: its lines without the comments; an empty or missing field is an error
  awk -F '\t' -v columns="$2" '/^#/ || !NF { next } { bad = NF != columns; for (i = 1; i <= NF; i++) bad += $i == "" }
    bad { printf "%s line %d: needs %d fields, parted by tabs\n", FILENAME, NR, columns > "/dev/stderr"; exit 1 } 1' "$1"
}

matches() { # FILE CHECKSUM: sets $found; the checksum "-" (none is published) matches every file
  local algorithm=${2/#-/sha256}
  found=${algorithm%%:*}:$(tool digest "${algorithm%%:*}" "$1")
  [ "$2" = - ] || [ "$found" = "$2" ]
}

obtain() { # TARGET FILE CHECKSUM URLS: makes TARGET the verified file, unless it is; sets $origin and $found
  local attempt && mkdir -p "$(dirname "$1")"
  if [ -f "$1" ]; then
    origin="$1, which was there"
    matches "$1" "$3" || die "$1 has checksum $found, expected $3. Move it away, or get it again from $4"
    return
  fi
  for origin in ${ODD_MIRROR:+"${ODD_MIRROR%/}/$2"} $4; do
    for attempt in first second; do # the second starts from nothing
      echo "fetching $origin"
      tool fetch "$origin" "$1.part" || break
      if matches "$1.part" "$3"; then mv "$1.part" "$1" && return; fi
      echo "download.sh: $origin, $attempt try: checksum $found, expected $3; the file is removed" >&2
      rm "$1.part"
    done
  done
  die "$2 could not be had from any of its sources. Run the same command again (what has arrived is continued),
name a mirror with ODD_MIRROR=https://host/path, or get a data set's archive by hand and pass --file PATH/$2.
If the publisher has moved or replaced it, correct its line in the table under $here/assets."
}

arrange_road_anomaly() { # FOLDER: frames/N.jpg, frames/N.labels/labels_semantic.png -> images/N.jpg, masks/N.png
  local image && mkdir "$1/images" "$1/masks"
  for image in "$1"/frames/*.jpg; do
    mv "${image%.jpg}.labels/labels_semantic.png" "$1/masks/$(basename "$image" .jpg).png"
    mv "$image" "$1/images/"
  done
  rm -r "$1/frames"
}

install_archive() { # the nine columns of assets/datasets.tsv
  local name=$1 place=$2 file=$3 folder=$4 checksum=$5 bytes=${6#\~} needed=${7#\~} urls=$8 terms=$9
  local target=$root/$2 fetched=$root/.downloads/$3 archive=${local_file:-$root/.downloads/$3} origin found free limit
  if [ -f "$target/.download" ]; then
    [ "$checksum" = - ] || grep -qx "checksum: $checksum" "$target/.download" ||
      die "$target is of another archive than the table now names. Remove that folder to download it again."
    echo "$place: already there, nothing to do" && return
  fi
  [ ! -e "$target" ] || die "$target was not made by this script. Use it as it is, or move it away to download it."
  if [ "$urls" = - ] && [ -z "$local_file${ODD_MIRROR-}" ]; then
    die "$file cannot be fetched without an account. $terms. Then: ./download.sh $name --file PATH/$file"
  fi
  echo "$place: $file, terms: $terms"
  [ -f "$archive" ] || needed=$((needed + bytes - $(size_of "$fetched.part")))
  mkdir -p "$(dirname "$target")"
  free=$(df -Pk "$root" | awk 'NR == 2 { printf "%.0f", $4 * 1024 }')
  [ "$free" -ge "$needed" ] || die "$place needs $(human "$needed") free in $root, and $(human "$free") are available.
Free some space, or choose another place with --root DIR."
  obtain "$archive" "$file" "$checksum" "$urls"
  staging=$(mktemp -d "$root/.staging.XXXXXX") && mkdir "$staging/all"
  # an archive that was never verified is not kept when it cannot be unpacked: the next call fetches it anew
  # an estimated size may be three times as large
  case $7 in \~*) limit=$((3 * ${7#\~})) ;; *) limit=$7 ;; esac
  tool unpack "$archive" "$staging/all" "$limit" || { [ "$checksum" != - ] || rm -f "$fetched"; exit 1; }
  # shellcheck disable=SC2086 # the folder is a pattern: GitHub names it after the commit
  set -- "$staging"/all/$folder
  if [ $# -ne 1 ] || [ ! -d "$1" ]; then die "$archive holds no folder $folder: correct its line in $table"; fi
  [ "$(cd "$1" && pwd -P)" = "$(cd "$staging/all" && pwd -P)${1#"$staging/all"}" ] || [ "$folder" = . ] ||
    die "$archive has a link in the place of its folder $folder: it is not installed"
  [ "$name" != road_anomaly ] || arrange_road_anomaly "$1"
  printf '%s\n' "file: $file" "origin: $origin" "checksum: $found" "published: $checksum" >"$1/.download"
  mv "${1%/.}" "$target"
  rm -rf "$staging" "$fetched"
  echo "$place: ready in $target"
}

install_checkpoint() { # the three columns of assets/weights/index.tsv
  local target=$weights/$1 origin found
  [[ $3 =~ ^[0-9a-f]{64}$ ]] || die "$weights/index.tsv: $1 needs a SHA-256 of 64 lower-case hex digits"
  obtain "$target" "$1" "sha256:$3" "$2"
  echo "$1: ready in $target"
}

usage() {
  cat <<'HELP'
usage: ./download.sh TARGET... [--root DIR] [--file ARCHIVE]
  --root DIR      where data sets go (default: $DATA_DIR, or data/ beside this script)
  --file ARCHIVE  install this archive, got by hand, under the name the publisher gave it
  ODD_MIRROR=URL  in the environment: try URL/<file> before the publisher's address
  ./download.sh camvid cifar100
  ./download.sh streethazards --root /mnt/data
  ./download.sh mvtec --file ~/Downloads/mvtec_anomaly_detection.tar.xz
  ./download.sh weights
targets ("~" marks an estimate; a checksum of "-" means that none is published, so the first download is trusted):
  weights -> assets/weights: the checkpoints listed in assets/weights/index.tsv, verified by SHA-256
HELP
  rows "$table" 9 | while IFS=$'\t' read -r name place file _ checksum bytes unpacked urls terms; do
    printf '  %s -> %s: %s, %s + %s unpacked, checksum %s\n      from %s\n      terms: %s\n' "$name" "$place" "$file" \
      "${bytes%%[0-9]*}$(human "${bytes#\~}")" "${unpacked%%[0-9]*}$(human "${unpacked#\~}")" "${checksum%%:*}" \
      "${urls%% *}" "$terms"
  done
  cat <<'HELP'
  Fishyscapes Lost & Found is not packed as one archive: get the labels from https://fishyscapes.com and the photographs
      from http://www.6d-vision.com/lostandfounddataset, and lay them out as images/NAME.png beside
      labels_masks/NAME_labels_semantic.png, which --dataset smiyc reads.
HELP
}

while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) usage && exit ;;
    --root) root=${2:?--root needs a folder} && shift ;;
    --file) local_file=${2:?--file needs an archive} && shift ;;
    *) targets+=("$1") ;;
  esac
  shift
done
[ ${#targets[@]} -gt 0 ] || die "name at least one target; ./download.sh --help lists them"
[ -z "$local_file" ] || [ -f "$local_file" ] || die "--file $local_file: there is no such file"
known=$(rows "$table" 9 && rows "$weights/index.tsv" 3 | sed $'s/^/weights\t/')
for target in "${targets[@]}"; do # all are looked up before any is fetched
  lines=$(awk -F '\t' -v name="$target" -v file="${local_file##*/}" '$1 == name && (file == "" || $3 == file)' <<<"$known")
  if [ -n "$lines" ]; then
    selected+=$lines$'\n'
  elif [ "$target" = weights ]; then
    echo "assets/weights/index.tsv lists no checkpoint, so there is nothing to fetch; its header shows how to add one"
  else
    die "$target${local_file:+ with --file ${local_file##*/}} is not in $table; ./download.sh --help lists the targets"
  fi
done
while IFS=$'\t' read -r -u 3 -a fields; do
  if [ "${fields[0]}" = weights ]; then install_checkpoint "${fields[@]:1}"; else install_archive "${fields[@]}"; fi
done 3< <(printf %s "$selected")
