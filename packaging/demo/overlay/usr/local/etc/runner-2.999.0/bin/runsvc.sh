#!/bin/bash
# As actions/runner's runsvc.sh: the listener as a service, its signals passed on.
cd "$(dirname "$0")/.." || exit 1
trap 'kill -INT "$listener"' TERM INT
./bin/Runner.Listener run --startuptype service &
listener=$!
# A signal ends a wait early.
until wait "$listener"; status=$?; [ $status -le 128 ] || ! kill -0 "$listener" 2> /dev/null; do :; done
exit $status
