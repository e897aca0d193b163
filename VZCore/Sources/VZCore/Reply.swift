/// One caller's wait for one answer. Whoever comes first settles it: the framework, or the caller who gives up.
final class Reply<Value: Sendable>: Sendable {
    typealias Answer = Result<Value, VZFailure>

    private enum Waiting {
        case notYet
        case with(CheckedContinuation<Answer, Never>)
        case noMore
    }

    private let waiting = Locked<Waiting>(.notYet)
    private let givenUp: VZFailure

    /// `givenUp` is what a caller hears who gives up.
    init(ifGivenUp givenUp: VZFailure) { self.givenUp = givenUp }

    /// Begins what is asked, in the caller's isolation, and waits for the answer. A caller who gave up before has
    /// theirs, and nothing is begun.
    func wait(isolation: isolated (any Actor)? = #isolation, _ begin: () -> Void) async -> Answer {
        await withCheckedContinuation(isolation: isolation) { continuation in
            if expect(continuation) { begin() }
        }
    }

    private func expect(_ continuation: CheckedContinuation<Answer, Never>) -> Bool {
        let inTime = waiting.with { waiting in
            guard case .notYet = waiting else { return false }
            waiting = .with(continuation)
            return true
        }
        if !inTime { continuation.resume(returning: .failure(givenUp)) }
        return inTime
    }

    /// Nobody waits any more.
    var isSettled: Bool {
        waiting.with { if case .noMore = $0 { true } else { false } }
    }

    /// The answer. False when nobody waits for it, and what it holds is to be let go of.
    @discardableResult
    func settle(_ answer: Answer) -> Bool {
        let continuation = waiting.with { waiting -> CheckedContinuation<Answer, Never>? in
            defer { waiting = .noMore }
            guard case .with(let continuation) = waiting else { return nil }
            return continuation
        }
        continuation?.resume(returning: answer)
        return continuation != nil
    }

    func fail(_ failure: VZFailure) { settle(.failure(failure)) }

    func fail(_ code: FailureCode, _ message: String) { fail(VZFailure(code: code, message: message)) }

    /// The caller waits no longer, and hears so.
    func giveUp() { settle(.failure(givenUp)) }
}
