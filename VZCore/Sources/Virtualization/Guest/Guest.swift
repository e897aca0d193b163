import Foundation

/// A guest: one process group, from its start until it has been cleaned up. Its thread waits for it, reports
/// its events, and cleans up after it, also when there is no listener any more. May be used from any thread.
final class Guest: Sendable {
    enum Event {
        /// It runs.
        case started
        /// It could not be run, and nothing is left of it.
        case failed(any Error)
        case paused
        case resumed
        /// It has ended and was cleaned up.
        case ended(End)
    }

    enum End: Equatable {
        case poweredOff
        case killed
        /// What happened, worded.
        case crashed(String)
    }

    struct Launch: Sendable {
        var program: GuestProgram?
        var environment: [String: String]
        var directory: GuestDirectory
        /// The serial port: what the guest reads and writes.
        var serialPort: SerialPort
        /// It begins paused, before its program's first instruction.
        var startsPaused: Bool
    }

    private enum Life {
        case notStarted
        /// It has no program, and is only reported as running.
        case idle
        case running(ProcessTree, stopped: Bool)
        case finished
    }

    private let launch: Launch
    private let lease: Lease
    private let report: @Sendable (Guest, Event) -> Void
    private let life = Lock((life: Life.notStarted, killed: false))

    init(_ launch: Launch, lease: Lease, report: @escaping @Sendable (Guest, Event) -> Void) {
        self.launch = launch
        self.lease = lease
        self.report = report
        StandIn.guests.increment()
    }

    /// Once.
    func start() {
        guard let program = launch.program else { return idle() }
        let thread = Thread { self.run(program) }
        thread.name = "vz-guest"
        thread.stackSize = 512 << 10
        thread.start()
    }

    /// Answered by `.paused`.
    func pause() {
        control(idle: .paused) { tree, stopped in
            if !stopped { tree.stop() }
            return stopped ? .paused : nil
        }
    }

    /// Answered by `.resumed`.
    func resume() {
        control(idle: .resumed) { tree, stopped in
            if stopped { tree.resume() }
            return stopped ? nil : .resumed
        }
    }

    /// Presses the power button. A guest without a program does not care.
    func requestStop() {
        control(idle: nil) { tree, _ in
            kill(tree.root, SIGTERM)
            return nil
        }
    }

    /// Answered by `.ended`.
    func end() {
        life.withLock { $0.killed = true }
        control(idle: .ended(.killed)) { tree, _ in
            tree.end()
            return nil
        }
    }

    /// Lets a guest without a program power itself off. Answered by `.ended`.
    func powerOff() { control(idle: .ended(.poweredOff)) { _, _ in nil } }

    /// Acts on the process, if there is one, and reports what happens at once; its thread reports the rest.
    private func control(idle: Event?, _ act: (ProcessTree, _ stopped: Bool) -> Event?) {
        let event = life.withLock { now -> Event? in
            switch now.life {
            case .notStarted, .finished: return nil
            case .running(let tree, let stopped): return act(tree, stopped)
            case .idle:
                if case .ended = idle { now.life = .finished }
                return idle
            }
        }
        guard let event else { return }
        if case .ended = event { cleanUp() }
        report(self, event)
    }

    private func idle() {
        let killed = life.withLock { now in
            now.life = now.killed ? .finished : .idle
            return now.killed
        }
        guard !killed else {
            cleanUp()
            return report(self, .ended(.killed))
        }
        report(self, .started)
        if launch.startsPaused { report(self, .paused) }
    }

    // MARK: - The guest's thread

    private func run(_ program: GuestProgram) {
        do {
            let watchdog = try GuestWatchdog(of: launch.directory)
            do {
                let process = try begin(program, watchdog)
                report(self, .started)
                let end = wait(for: process)
                finish(process)
                watchdog.dismiss()
                cleanUp()
                report(self, .ended(end))
            } catch {
                watchdog.dismiss()
                throw error
            }
        } catch {
            life.withLock { $0.life = .finished }
            cleanUp()
            report(self, .failed(error))
        }
    }

    /// Runs the program, which waits until the watchdog has its pid, or ends with this process.
    private func begin(_ program: GuestProgram, _ watchdog: GuestWatchdog) throws -> pid_t {
        var gate: [Int32] = [-1, -1]
        let stream = Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue)
        guard socketpair(AF_UNIX, stream, 0, &gate) == 0 else { throw NSError.posix(errno) }
        defer { for end in gate { close(end) } }
        let port = launch.serialPort
        let command = try program.arguments(copyingTo: launch.directory)
        let pass = launch.startsPaused ? "kill -STOP $$; " : ""
        let process = try Spawn(
            arguments: ["/bin/sh", "-c", "read -r go <&3 || exit; exec 3<&-; \(pass)exec \"$@\"", command[0]]
                + command,
            environment: launch.environment, directory: launch.directory.path,
            descriptors: [port.input.number, port.output.number, port.output.number, gate[1]]
        ).run()
        do {
            try watchdog.watch(process)
            guard write(gate[0], "\n", 1) == 1 else { throw NSError.posix(errno) }
        } catch {
            kill(process, SIGKILL)
            reap(process)
            throw error
        }
        life.withLock { now in
            now.life = .running(ProcessTree(root: process), stopped: false)
            if now.killed { ProcessTree(root: process).end() }
        }
        return process
    }

    /// Waits until the process has ended, and leaves it a zombie: until then its pid is not reused.
    private func wait(for process: pid_t) -> End {
        while true {
            var info = siginfo_t()
            guard waitid(P_PID, id_t(process), &info, WEXITED | WSTOPPED | WCONTINUED | WNOWAIT) == 0 else {
                if errno == EINTR { continue }
                return .crashed("waiting for it failed: \(String(cString: strerror(errno)))")
            }
            let status = info._sifields._sigchld.si_status
            switch Int(info.si_code) {
            case Int(CLD_STOPPED), Int(CLD_TRAPPED):
                waitid(P_PID, id_t(process), &info, WSTOPPED | WNOHANG)
                noteStopped(true)
                report(self, .paused)
            case Int(CLD_CONTINUED):
                waitid(P_PID, id_t(process), &info, WCONTINUED | WNOHANG)
                noteStopped(false)
                report(self, .resumed)
            case Int(CLD_EXITED):
                return status == 0 ? .poweredOff : .crashed("it ended with exit status \(status)")
            default:
                let ours = life.withLock { $0.killed }
                return ours && status == SIGKILL ? .killed : .crashed("it ended by signal \(status)")
            }
        }
    }

    private func noteStopped(_ stopped: Bool) {
        life.withLock { now in
            if case .running(let tree, _) = now.life { now.life = .running(tree, stopped: stopped) }
        }
    }

    private func finish(_ process: pid_t) {
        life.withLock { $0.life = .finished }
        // What it left behind in its group.
        kill(-process, SIGKILL)
        reap(process)
    }

    private func reap(_ process: pid_t) {
        var status: Int32 = 0
        while waitpid(process, &status, 0) < 0, errno == EINTR {}
    }

    private func cleanUp() {
        launch.serialPort.close()
        launch.directory.remove()
        lease.release()
        StandIn.guests.decrement()
    }
}
