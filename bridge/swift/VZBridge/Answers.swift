import CVZBridge
import Darwin
import Foundation
import Synchronization
import VZCore

/// What a call answers with when it succeeds.
struct Answer: Sendable {
    var value: Int64
    var message: String
    static let done = Answer(value: 0, message: "")
}

/// Runs `body` and makes an outcome of its answer or error.
func answer(_ body: () throws -> Answer) -> Outcome {
    do {
        let answer = try body()
        return Outcome(
            code: FailureCode.ok.rawValue, value: answer.value, message: answer.message.intoRustString())
    } catch {
        let failure = VZFailure(error)
        return Outcome(code: failure.code.rawValue, value: 0, message: failure.message.intoRustString())
    }
}

extension VZFailure {
    /// Any error's. VZCore throws its own; what else may come is Foundation's.
    init(_ error: any Error) {
        self = (error as? VZFailure) ?? VZFailure(code: .internalError, message: "\(error)")
    }
}

/// Waiting for Swift's tasks from a thread that is not Swift's.
enum Deadline {
    private enum Phase<T: Sendable>: Sendable {
        case waiting
        case done(Result<T, any Error>)
        case abandoned
    }

    private final class Slot<T: Sendable>: Sendable {
        let phase = Mutex<Phase<T>>(.waiting)
        let ready = DispatchSemaphore(value: 0)
    }

    /// What `body` gives, or a timedOut failure after `milliseconds`. It runs on then, and what it gives in the end
    /// goes to `late`.
    static func run<T: Sendable>(
        _ milliseconds: UInt64, _ what: String,
        late: @escaping @Sendable (T) -> Void = { _ in },
        _ body: @escaping @Sendable () async throws -> T
    ) throws -> T {
        let slot = Slot<T>()
        Task.detached {
            let result: Result<T, any Error>
            do { result = .success(try await body()) } catch { result = .failure(error) }
            let abandoned = slot.phase.withLock { phase in
                if case .abandoned = phase { return true }
                phase = .done(result)
                return false
            }
            slot.ready.signal()
            if abandoned, case .success(let value) = result { late(value) }
        }
        let most = UInt64(Int.max / 2_000_000)
        _ = slot.ready.wait(timeout: .now() + .milliseconds(Int(min(milliseconds, most))))
        return try slot.phase.withLock { phase in
            if case .done(let result) = phase { return try result.get() }
            phase = .abandoned
            throw VZFailure(
                code: .timedOut,
                message: "\(what) took longer than \(milliseconds) ms, and may still come to its end")
        }
    }
}

enum Descriptors {
    static func close(_ descriptor: Int32) {
        _ = Darwin.close(descriptor)
    }
}
