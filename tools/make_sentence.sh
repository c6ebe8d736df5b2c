#!/usr/bin/env bash
# Speaks the sentence of `jaxsparse demo` into jaxsparse/assets/sentence.flac: 16 kHz, mono, 16 bits.
# Needs espeak-ng, sox and flac.
set -euo pipefail

for tool in espeak-ng sox flac; do
    command -v "$tool" >/dev/null || { echo "make_sentence.sh needs $tool" >&2; exit 1; }
done

target="$(dirname "$0")/../jaxsparse/assets/sentence.flac"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT

espeak-ng -v en-gb -s 150 -w "$work/spoken.wav" \
    "A woman rock climber scales a cliff far above pastures"
# -R seeds the dither alike each time, so that a second run gives the same samples.
sox -R "$work/spoken.wav" -r 16000 -c 1 -b 16 "$work/sentence.wav" gain -n -3 rate -v pad 0.1 0.2
flac --silent --best --force --output-name "$target" "$work/sentence.wav"
echo "$target: $(soxi -D "$target") s, $(wc -c <"$target") bytes"
