/// One caller's wait for one answer. The first of two settles it: the framework's answer or the caller's cancellation.
final class Reply<Value: Sendable>: Sendable {
    typealias Answer = Result<Value, VZFailure>

    private enum Phase {
        case idle
        case waiting(CheckedContinuation<Answer, Never>)
        case settled
    }

    private let phase = Locked<Phase>(.idle)
    private let cancelled: VZFailure

    /// - Parameter cancelled: the failure of a caller who cancels.
    init(ifCancelled cancelled: VZFailure) { self.cancelled = cancelled }

    /// Calls `begin`, in the caller's isolation, and waits for the answer. If the caller has cancelled already, `begin`
    /// is not called.
    func wait(isolation: isolated (any Actor)? = #isolation, _ begin: () -> Void) async -> Answer {
        await withCheckedContinuation(isolation: isolation) { continuation in
            if expect(continuation) { begin() }
        }
    }

    private func expect(_ continuation: CheckedContinuation<Answer, Never>) -> Bool {
        let inTime = phase.with { phase in
            guard case .idle = phase else { return false }
            phase = .waiting(continuation)
            return true
        }
        if !inTime { continuation.resume(returning: .failure(cancelled)) }
        return inTime
    }

    /// Whether the caller no longer waits.
    var isSettled: Bool {
        phase.with { if case .settled = $0 { true } else { false } }
    }

    /// Answers the caller. Returns false when the caller no longer waits, and what the answer holds must be released.
    @discardableResult
    func settle(_ answer: Answer) -> Bool {
        let continuation = phase.with { phase -> CheckedContinuation<Answer, Never>? in
            defer { phase = .settled }
            guard case .waiting(let continuation) = phase else { return nil }
            return continuation
        }
        continuation?.resume(returning: answer)
        return continuation != nil
    }

    func fail(_ failure: VZFailure) { settle(.failure(failure)) }

    func fail(_ code: FailureCode, _ reason: String) { fail(VZFailure(code: code, reason: reason)) }

    /// Ends the caller's wait with the `cancelled` failure.
    func cancel() { settle(.failure(cancelled)) }
}
