import CVZBridge
import Darwin
import Foundation
import Synchronization
import VZCore

/// The result of a successful call.
struct CallResult: Sendable {
    var value: Int64
    var text: String
    static let done = CallResult(value: 0, text: "")
}

/// Runs `body` and returns its result or error as an outcome.
func outcome(_ body: () throws -> CallResult) -> Outcome {
    do {
        let result = try body()
        return Outcome(
            code: FailureCode.ok.rawValue, value: result.value, text: result.text.intoRustString())
    } catch {
        let failure = VZFailure(error)
        return Outcome(code: failure.code.rawValue, value: 0, text: failure.reason.intoRustString())
    }
}

extension VZFailure {
    /// VZCore throws `VZFailure`; anything else is an error of Foundation.
    init(_ error: any Error) {
        self = (error as? VZFailure) ?? VZFailure(code: .internalError, reason: "\(error)")
    }
}

/// Waits for Swift's tasks on a thread that is not Swift's.
enum Deadline {
    private enum Phase<T: Sendable>: Sendable {
        case waiting
        case done(Result<T, any Error>)
        case abandoned
    }

    private final class PendingResult<T: Sendable>: Sendable {
        let phase = Mutex<Phase<T>>(.waiting)
        let ready = DispatchSemaphore(value: 0)
    }

    /// Returns the result of `body`, or throws a timedOut failure after `milliseconds`. In that case `body` keeps
    /// running, and its result is passed to `late`.
    static func run<T: Sendable>(
        _ milliseconds: UInt64, _ what: String,
        late: @escaping @Sendable (T) -> Void = { _ in },
        _ body: @escaping @Sendable () async throws -> T
    ) throws -> T {
        let pending = PendingResult<T>()
        Task.detached {
            let result: Result<T, any Error>
            do { result = .success(try await body()) } catch { result = .failure(error) }
            let abandoned = pending.phase.withLock { phase in
                if case .abandoned = phase { return true }
                phase = .done(result)
                return false
            }
            pending.ready.signal()
            if abandoned, case .success(let value) = result { late(value) }
        }
        let most = UInt64(Int.max / 2_000_000)
        _ = pending.ready.wait(timeout: .now() + .milliseconds(Int(min(milliseconds, most))))
        return try pending.phase.withLock { phase in
            if case .done(let result) = phase { return try result.get() }
            phase = .abandoned
            throw VZFailure(
                code: .timedOut,
                reason: "\(what) took longer than \(milliseconds) ms, and may still complete")
        }
    }
}

enum Descriptors {
    static func close(_ descriptor: Int32) {
        _ = Darwin.close(descriptor)
    }
}
