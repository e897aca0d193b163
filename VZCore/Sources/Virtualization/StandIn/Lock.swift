import Foundation

/// A value behind a lock that the thread sanitizer sees. Of a contended `Synchronization.Mutex` it sees nothing on Linux,
/// and reports false races (see VZCore's `Locked`).
final class Lock<Value>: @unchecked Sendable {
    private let lock = NSLock()
    private var value: Value

    init(_ value: sending Value) { self.value = value }

    func withLock<Result>(_ body: (inout Value) throws -> Result) rethrows -> Result {
        lock.lock()
        defer { lock.unlock() }
        return try body(&value)
    }
}
