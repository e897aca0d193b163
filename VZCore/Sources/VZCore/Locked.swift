import Foundation

/// A value behind a lock. Not `Synchronization.Mutex`: on Linux the kernel hands over a contended one (futex), which
/// ThreadSanitizer cannot see, so that it reports false races. It understands this lock.
final class Locked<Value>: @unchecked Sendable {
    private let lock = NSLock()
    private var value: Value

    init(_ value: sending Value) { self.value = value }

    func with<Result: Sendable>(_ body: (inout Value) -> Result) -> Result {
        lock.withLock { body(&value) }
    }
}
