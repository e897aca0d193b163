#!/usr/bin/env bash
# Runs every test there is and closes with "N passed, N failed"; exits non-zero when one failed or none ran.
# FEATURES (from make): cargo's flags where there is a Swift toolchain; then Swift's own tests, the seam's, and the whole
# system with `--hypervisor vz` run too.
set -uo pipefail
log=${TEST_LOG:-target/test.log}
mkdir -p "$(dirname "$log")"
: > "$log"

status=0
run() {
    echo "==> $*"
    "$@" 2>&1 | tee -a "$log" || status=1
}

export SHOESVZ_TEST_TEMPLATE=${SHOESVZ_TEST_TEMPLATE:-$PWD/target/template}
read -r -a features <<< "${FEATURES:-}"
vm_features=guest-tests testkit_features=()
if ((${#features[@]})); then
    vm_features=guest-tests,swift
    testkit_features=(--features vz-tests)
fi

# Ids of every QEMU and every guest of the stand-in's there is; the tests must leave none of theirs.
guests() { pgrep -f '^[^ ]*qemu-system-|^unshare .*--kill-child=KILL .*/program inside' | sort; }
before=$(guests)

# Everything that needs no guest, then the VM process and the whole system on real guests, two at a time: a guest is a
# core's work. There are no documentation tests, so none are looked for.
kinds=(--lib --bins --tests)
run cargo test --workspace --exclude shoes-vz-testkit --no-fail-fast "${features[@]}" "${kinds[@]}"
run cargo test -p shoes-vz-vm --features "$vm_features" --no-fail-fast --test guest -- --test-threads=2
run cargo test -p shoes-vz-testkit --no-fail-fast "${testkit_features[@]}" "${kinds[@]}" -- --test-threads=2

swift_passed=0 swift_failed=0
if ((${#features[@]})); then
    # What a build without Swift answers.
    run cargo test -p shoes-vz-bridge --no-fail-fast --lib
    run packaging/dev/swift-test.sh
    read -r swift_passed swift_failed < <(awk '/^[0-9]+ passed, [0-9]+ failed$/ { p = $1; f = $3 } END { print p + 0, f + 0 }' "$log")
else
    echo "==> no Swift toolchain (\`make setup-swift\`): VZCore, the seam to it and --hypervisor vz were NOT tested"
fi

read -r passed failed < <(awk '/^test result:/ { for (i = 1; i < NF; i++) { if ($(i + 1) ~ /^passed/) p += $i; if ($(i + 1) ~ /^failed/) f += $i } }
    END { print p + 0, f + 0 }' "$log")
passed=$((passed + swift_passed)) failed=$((failed + swift_failed))
left=$(comm -13 <(echo "$before") <(guests))
if [[ -n $left ]]; then
    echo "error: the tests left guests behind: $(echo $left)" | tee -a "$log"
    status=1
fi
# A crate whose tests did not compile has no result line; it must not go unnoticed.
if [[ $status != 0 && $failed == 0 ]]; then failed=1; fi
grep -E '^test .* FAILED$|^error|^✘ Test ' "$log" | sort -u | head -50
echo "$passed passed, $failed failed"
[[ $status == 0 && $failed == 0 && $passed -gt 0 ]]
