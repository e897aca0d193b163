import Foundation

/// A process that outlives this one just long enough to end its guest: when this process ends in any way, the
/// watchdog's standard input ends, and it kills the guest with all its descendants and removes its directory.
struct GuestWatchdog {
    private let process: pid_t
    private let line: Int32

    init(of directory: GuestDirectory) throws {
        var ends: [Int32] = [-1, -1]
        let stream = Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue)
        guard socketpair(AF_UNIX, stream, 0, &ends) == 0 else { throw NSError.posix(errno) }
        defer { close(ends[1]) }
        do {
            let null = try Descriptor(copying: nil)
            process = try Spawn(
                arguments: ["/bin/sh", "-c", Self.script, "vz-guest-watchdog", directory.path],
                environment: GuestEnvironment.path, directory: "/",
                descriptors: [ends[1], null.number, null.number]
            ).run()
            line = ends[0]
        } catch {
            close(ends[0])
            throw error
        }
    }

    /// Sends it the process to end.
    func watch(_ guest: pid_t) throws {
        let text = Array("\(guest)\n".utf8)
        guard write(line, text, text.count) == text.count else { throw NSError.posix(errno) }
    }

    /// The guest has ended, and so does the watchdog.
    func dismiss() {
        kill(process, SIGKILL)
        var status: Int32 = 0
        while waitpid(process, &status, 0) < 0, errno == EINTR {}
        close(line)
    }

    private static let script = """
        end() {
            kill -STOP "$1"
            for child in $(cat /proc/"$1"/task/*/children); do end "$child"; done
            kill -KILL "$1"
        }
        if read -r guest; then
            read -r over
            end "$guest"
            kill -KILL -- "-$guest"
        fi
        rm -rf -- "$1"
        """
}
