#!/bin/bash
# A hook of the template's: the runner executes it when a job has completed (ACTIONS_RUNNER_HOOK_JOB_COMPLETED).
echo "hook: the job has completed" | tee -a /tmp/job-hooks.log
