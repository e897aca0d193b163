#!/bin/bash
# A hook of the template's: the runner executes it when a job has started (ACTIONS_RUNNER_HOOK_JOB_STARTED).
echo "hook: the job has started" | tee -a /tmp/job-hooks.log
