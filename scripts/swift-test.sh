#!/usr/bin/env bash
# Runs Swift's tests: format, `swift test` with coverage of VZCore's lines (at least 85 %), races under ThreadSanitizer,
# and api-check. Exits with 69 without Swift. The last line is "N passed, N failed".
set -uo pipefail
cd "$(dirname "$0")/.."
least=85
scratch=${SHOESVZ_SWIFT_SCRATCH:-target/swift}
log=$scratch/test.log
mkdir -p "$scratch"
: > "$log"
status=0

# Line-buffered, so that the log names a test that hangs.
swift() { scripts/with-swift stdbuf -oL "$@"; }
swift true || exit $?

run() {
    echo "==> $*"
    swift "$@" 2>&1 | tee -a "$log" || status=1
}

run swift format lint --strict -r Package.swift VZCore bridge/swift/VZBridge/*.swift
# Two processes, and one test at a time: leak tests count what the whole process holds.
test=(swift test --scratch-path "$scratch" --disable-xctest --enable-code-coverage -Xswiftc -warnings-as-errors)
run timeout 600 "${test[@]}" --no-parallel --filter VirtualizationTests
run timeout 600 "${test[@]}" --skip-build --filter VZCoreTests

profile=$(echo "$scratch"/debug/codecov/default.profdata)
program=$(echo "$scratch"/debug/*PackageTests.xctest)
table=$(swift llvm-cov report "$program" -instr-profile "$profile" VZCore/Sources/VZCore)
echo "$table"
# The line coverage is the tenth column of TOTAL.
covered=$(echo "$table" | awk '$1 == "TOTAL" { sub("%", "", $10); print $10 }')
if awk -v c="${covered:-0}" -v l=$least 'BEGIN { exit !(c >= l) }'; then
    echo "VZCore: $covered % of its lines are covered by tests (at least $least %)"
else
    echo "error: ${covered:-no} % of VZCore's lines are covered by tests; at least $least % are required" | tee -a "$log"
    status=1
fi

run timeout 900 swift test --scratch-path "$scratch-tsan" --disable-xctest --sanitize=thread --filter Races
grep -q 'WARNING: ThreadSanitizer' "$log" && { echo "error: ThreadSanitizer found a race"; status=1; }

echo "==> scripts/api-check.sh"
scripts/api-check.sh 2>&1 | tee -a "$log" || status=1

# swift-testing's closing lines: "✔ Test run with 93 tests passed after …", "✘ Test run with 93 tests failed after … with 2 issues."
read -r passed failed < <(awk '/Test run with [0-9]+ tests? (in [0-9]+ suites? )?(passed|failed)/ {
        for (i = 1; i < NF; i++) if ($i == "with" && $(i + 2) ~ /^test/) { total += $(i + 1); break } }
    /^✘ Test .* (recorded an issue|failed after)/ && !/Test run with/ { name = $0; sub(/ (recorded an issue|failed after).*/, "", name); bad[name] = 1 }
    END { f = length(bad); print total - f, f }' "$log")
[[ $status == 0 || $failed -gt 0 ]] || failed=1
echo "$passed passed, $failed failed"
[[ $status == 0 && $failed == 0 && $passed -gt 0 ]]
