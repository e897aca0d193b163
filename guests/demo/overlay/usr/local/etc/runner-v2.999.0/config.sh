#!/bin/bash
# Pretends to be actions/runner's config.sh: registers nowhere, and leaves the same files behind.
set -eu
cd "$(dirname "$0")"

url='' token='' name='' labels='' ephemeral=false unattended=false
while [ $# -gt 0 ]; do
    case $1 in
        --unattended) unattended=true && shift ;;
        --ephemeral) ephemeral=true && shift ;;
        --url) url=$2 && shift 2 ;;
        --token) token=$2 && shift 2 ;;
        --name) name=$2 && shift 2 ;;
        --labels) labels=$2 && shift 2 ;;
        *) echo "Unrecognized command-line input arguments: '$1'." >&2 && exit 1 ;;
    esac
done
if [ -e .runner ]; then
    echo "Cannot configure the runner because it is already configured." >&2
    exit 1
fi
for given in "$url" "$token" "$name"; do
    if [ -z "$given" ]; then echo "--url, --token and --name are needed" >&2 && exit 1; fi
done
$unattended || { echo "only --unattended is supported" >&2 && exit 1; }

json() { printf '%s' "$1" | sed 's/\\/\\\\/g; s/"/\\"/g'; }
mkdir -p _diag _work
# With a byte order mark, as the real one writes it.
printf '\357\273\277{\n  "agentId": 1,\n  "agentName": "%s",\n  "poolId": 1,\n  "poolName": "Default",\n  "ephemeral": %s,\n  "serverUrl": "https://pipelines.actions.githubusercontent.com/demo",\n  "gitHubUrl": "%s",\n  "workFolder": "_work"\n}' \
    "$(json "$name")" "$ephemeral" "$(json "$url")" > .runner.new
umask 077
printf '\357\273\277{\n  "scheme": "OAuth",\n  "data": {\n    "clientId": "demo"\n  }\n}' > .credentials
echo "$PATH" > .path
mv .runner.new .runner

printf '\n√ Runner successfully added\n√ Settings Saved.\n'
[ -z "$labels" ] || echo "Labels: $labels"
