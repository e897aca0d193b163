import Darwin
import Foundation
import Virtualization

/// The framework's delegate: forwards its calls, which come on the VM's queue, to the engine. The framework holds its
/// delegates weakly, so the engine holds this.
final class Relay: NSObject, VZVirtualMachineDelegate, VZVirtioSocketListenerDelegate {
    let listener = VZVirtioSocketListener()
    private weak var engine: Engine?

    init(engine: Engine) {
        self.engine = engine
        super.init()
        listener.delegate = self
    }

    func guestDidStop(_ virtualMachine: VZVirtualMachine) { engine?.guestStopped() }

    func virtualMachine(_ virtualMachine: VZVirtualMachine, didStopWithError error: any Error) {
        engine?.stopped(with: error)
    }

    func virtualMachine(
        _ virtualMachine: VZVirtualMachine, networkDevice: VZNetworkDevice,
        attachmentWasDisconnectedWithError error: any Error
    ) {
        engine?.networkDisconnected(error)
    }

    func listener(
        _ listener: VZVirtioSocketListener, shouldAcceptNewConnection connection: VZVirtioSocketConnection,
        from socketDevice: VZVirtioSocketDevice
    ) -> Bool {
        engine?.guestConnected(connection) ?? false
    }
}

extension VZVirtualMachine {
    /// Neither running nor changing its state.
    var hasEnded: Bool { state == .stopped || state == .error }

    /// Every configuration has exactly one.
    var socketDevice: VZVirtioSocketDevice? { socketDevices.first as? VZVirtioSocketDevice }
}

extension VZVirtioSocketConnection {
    /// A descriptor of the same connection that outlives this object, which is closed.
    func takeDescriptor(doing: String) -> Result<Int32, VZFailure> {
        let copy = fcntl(fileDescriptor, F_DUPFD_CLOEXEC, 0)
        let error = errno
        close()
        return copy >= 0 ? .success(copy) : .failure(VZFailure(errno: error, doing: doing))
    }
}

extension Result where Success == Void, Failure == any Error {
    /// From a completion handler that is given an error or nothing.
    init(_ error: (any Error)?) { self = error.map { .failure($0) } ?? .success(()) }
}

extension Duration {
    var milliseconds: Int {
        let (seconds, attoseconds) = components
        return Int(clamping: seconds) * 1000 + Int(attoseconds / 1_000_000_000_000_000)
    }
}
