import Darwin
import Foundation

/// A saved state that is being written. It appears at its path atomically.
struct SaveFile {
    /// The file the framework writes.
    let partial: URL
    private let path: String

    init(_ path: String) {
        self.path = path
        partial = URL(fileURLWithPath: path + ".partial")
    }

    /// Call when the framework has finished: renames a complete file to its path, with mode 0600 (it holds the guest's
    /// memory), or removes an incomplete one.
    func finish(_ written: Result<Void, VZFailure>) -> Result<Void, VZFailure> {
        let result = written.flatMap { publish() }
        if case .failure = result { discard() }
        return result
    }

    private func publish() -> Result<Void, VZFailure> {
        guard chmod(partial.path, 0o600) == 0, rename(partial.path, path) == 0 else {
            return .failure(VZFailure(errno: errno, doing: "renaming a saved state to \(path)"))
        }
        return .success(())
    }

    /// Removes a partial file of this process or of one that died.
    func discard() { unlink(partial.path) }
}
