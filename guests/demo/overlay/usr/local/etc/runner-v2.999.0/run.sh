#!/bin/bash
# As actions/runner's run.sh: the listener in the foreground.
cd "$(dirname "$0")" || exit 1
./bin/Runner.Listener run "$@"
