#!/bin/bash
# As actions/runner's runsvc.sh, which myshoes' setup script replaces: the listener as a service, kept by Node.js.
cd "$(dirname "$0")/.." || exit 1
trap 'kill -INT "$service"' TERM INT
./externals/node20/bin/node ./bin/RunnerService.js "$@" &
service=$!
# A signal ends a wait early.
until wait "$service"; status=$?; [ $status -le 128 ] || ! kill -0 "$service" 2> /dev/null; do :; done
exit $status
