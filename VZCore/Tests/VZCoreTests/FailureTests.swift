import Foundation
import Testing
import Virtualization

@testable import VZCore

// swift-format-ignore: AlwaysUseLowerCamelCase
extension VZCoreTests {
    @Suite struct Failures {
        /// SDK 26.5, `VZErrorCode`.
        private static let table: [(Int, FailureCode)] = [
            (1, .internalError), (2, .invalidConfiguration), (3, .invalidState), (4, .invalidState),
            (5, .diskImage),
            (6, .limitExceeded), (7, .network), (8, .diskFull), (9, .cancelled), (10, .notSupported),
            (11, .saveFailed), (12, .restoreFailed), (10001, .installFailed), (10002, .installFailed),
            (10003, .installFailed), (10004, .installFailed), (10005, .installFailed),
            (10006, .installFailed),
            (10007, .installFailed), (20001, .network), (20002, .network), (30001, .invalidConfiguration),
            (30002, .invalidState), (30003, .invalidConfiguration), (30004, .invalidConfiguration),
        ]

        @Test(arguments: table)
        func every_code_of_the_framework_has_its_meaning(raw: Int, code: FailureCode) {
            let failure = VZFailure(
                NSError(domain: "VZErrorDomain", code: raw), doing: "starting", otherwise: .io)
            #expect(failure.code == code)
            #expect(failure.reason.contains("(VZErrorDomain \(raw))"))
        }

        @Test func an_unknown_code_becomes_that_of_the_call() {
            #expect(
                VZFailure(NSError(domain: "VZErrorDomain", code: 77), doing: "x", otherwise: .saveFailed).code
                    == .saveFailed)
            #expect(VZFailure(NSError(domain: "Other", code: 1), doing: "x").code == .internalError)
        }

        @Test func the_numbers_that_cross_the_seam_stay() {
            #expect(FailureCode.allCases.map(\.rawValue) == Array(0...19))
            #expect(MachineState.allCases.map(\.rawValue) == Array(0...9))
            #expect(FailureCode.limitExceeded.rawValue == 4 && FailureCode.connectFailed.rawValue == 18)
        }

        @Test func the_reason_and_every_error_under_it_are_kept() {
            let full = NSError(domain: NSPOSIXErrorDomain, code: Int(ENOSPC))
            let middle = NSError(
                domain: "Middle", code: 3,
                userInfo: [NSLocalizedDescriptionKey: "No block.", NSUnderlyingErrorKey: full])
            let top = NSError(
                domain: "Top", code: 2,
                userInfo: [
                    NSLocalizedDescriptionKey: "It failed.",
                    NSLocalizedFailureReasonErrorKey: "The disk said no.",
                    NSUnderlyingErrorKey: middle,
                ])
            let failure = VZFailure(top, doing: "starting the VM of /b")
            #expect(
                failure.reason.hasPrefix(
                    "starting the VM of /b: It failed. The disk said no. (Top 2), because: No block. (Middle 3), because: "
                ))
            #expect(failure.reason.hasSuffix("(NSPOSIXErrorDomain \(ENOSPC))"))
            #expect(failure.code == .diskFull, "what lies under an unknown error decides")
            #expect("\(failure)" == failure.reason)
        }

        @Test func a_reason_in_the_description_is_not_repeated() {
            let error = NSError(
                domain: "D", code: 1,
                userInfo: [
                    NSLocalizedDescriptionKey: "Not now.", NSLocalizedFailureReasonErrorKey: "Not now.",
                ])
            #expect(VZFailure(error, doing: "x").reason == "x: Not now. (D 1)")
        }

        @Test func a_full_disk_is_known_by_every_name() {
            #expect(VZFailure(errno: ENOSPC, doing: "x").code == .diskFull)
            #expect(VZFailure(errno: EDQUOT, doing: "x").code == .diskFull)
            #expect(VZFailure(CocoaError(.fileWriteOutOfSpace), doing: "x").code == .diskFull)
            #expect(VZFailure(errno: EACCES, doing: "x").code == .io)
        }

        @Test func pain_04_the_limit_comes_with_advice() {
            let failure = VZFailure(VZError(.virtualMachineLimitExceeded), doing: "starting the VM of /b")
            #expect(failure.reason.contains("two macOS VMs"))
            #expect(failure.reason.contains("restart the host"))
        }
    }
}
