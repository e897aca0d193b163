#!/usr/bin/env bash
# Runs every test there is and closes with "N passed, N failed"; exits non-zero when one failed or none ran.
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

# Ids of every QEMU there is; the tests must leave none of theirs.
qemus() { pgrep -f '^[^ ]*qemu-system-' | sort; }
before=$(qemus)

# Everything that needs no guest, then the VM process and the whole system on real guests, two at a time: a guest is a
# core's work. There are no documentation tests, so none are looked for.
kinds=(--lib --bins --tests)
run cargo test --workspace --exclude shoes-vz-testkit --no-fail-fast "${kinds[@]}"
run cargo test -p shoes-vz-vm --features guest-tests --no-fail-fast --test guest -- --test-threads=2
run cargo test -p shoes-vz-testkit --no-fail-fast "${kinds[@]}" -- --test-threads=2

read -r passed failed < <(awk '/^test result:/ { for (i = 1; i < NF; i++) { if ($(i + 1) ~ /^passed/) p += $i; if ($(i + 1) ~ /^failed/) f += $i } }
    END { print p + 0, f + 0 }' "$log")
left=$(comm -13 <(echo "$before") <(qemus))
if [[ -n $left ]]; then
    echo "error: the tests left QEMU processes behind: $(echo $left)" | tee -a "$log"
    status=1
fi
# A crate whose tests did not compile has no result line; it must not go unnoticed.
if [[ $status != 0 && $failed == 0 ]]; then failed=1; fi
grep -E '^test .* FAILED$|^error' "$log" | sort -u | head -50
echo "$passed passed, $failed failed"
[[ $status == 0 && $failed == 0 && $passed -gt 0 ]]
