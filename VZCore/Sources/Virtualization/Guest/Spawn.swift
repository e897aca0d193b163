import Foundation

/// A child process: in a new process group, with no descriptors but those it is given, default
/// signals.
struct Spawn {
    var arguments: [String]
    var environment: [String: String] = [:]
    var directory: String
    /// Descriptors of this process, in the child's order from 0.
    var descriptors: [Int32]

    /// The child's process id. Throws the POSIX error. `arguments[0]` is the program's path.
    func run() throws -> pid_t {
        // The child's descriptors are set one by one: none may be overwritten before it is used.
        let lowestFree = Int32(descriptors.count) + 10
        var copies: [Int32] = []
        defer { for copy in copies { close(copy) } }
        for descriptor in descriptors {
            let copy = fcntl(descriptor, F_DUPFD_CLOEXEC, lowestFree)
            guard copy >= 0 else { throw NSError.posix(errno) }
            copies.append(copy)
        }

        var actions = posix_spawn_file_actions_t()
        posix_spawn_file_actions_init(&actions)
        defer { posix_spawn_file_actions_destroy(&actions) }
        for (target, copy) in copies.enumerated() {
            posix_spawn_file_actions_adddup2(&actions, copy, Int32(target))
        }
        posix_spawn_file_actions_addclosefrom_np(&actions, Int32(copies.count))
        posix_spawn_file_actions_addchdir_np(&actions, directory)

        var attributes = posix_spawnattr_t()
        posix_spawnattr_init(&attributes)
        defer { posix_spawnattr_destroy(&attributes) }
        // Dispatch's threads block signals, Rust ignores SIGPIPE: neither is the child's business.
        var none = sigset_t()
        sigemptyset(&none)
        var all = sigset_t()
        sigfillset(&all)
        posix_spawnattr_setsigmask(&attributes, &none)
        posix_spawnattr_setsigdefault(&attributes, &all)
        posix_spawnattr_setpgroup(&attributes, 0)
        let flags =
            Int32(POSIX_SPAWN_SETPGROUP) | Int32(POSIX_SPAWN_SETSIGMASK) | Int32(POSIX_SPAWN_SETSIGDEF)
        posix_spawnattr_setflags(&attributes, Int16(flags))

        var process: pid_t = 0
        let argv = CStrings(arguments)
        let variables = CStrings(environment.map { "\($0.key)=\($0.value)" })
        let failure = posix_spawn(
            &process, arguments[0], &actions, &attributes, argv.pointers, variables.pointers)
        guard failure == 0 else { throw NSError.posix(failure) }
        return process
    }

    /// A null-terminated array of C strings.
    private final class CStrings {
        let pointers: UnsafeMutablePointer<UnsafeMutablePointer<CChar>?>
        private let count: Int

        init(_ strings: [String]) {
            count = strings.count
            pointers = .allocate(capacity: count + 1)
            for (index, string) in strings.enumerated() { pointers[index] = strdup(string) }
            pointers[count] = nil
        }

        deinit {
            for index in 0..<count { free(pointers[index]) }
            pointers.deallocate()
        }
    }
}
