import Foundation

extension VZError {
    /// An error with texts like the framework's: what failed, and the reason.
    init(_ code: Code, failure: String, reason: String, underlying: (any Error)? = nil) {
        var info: [String: Any] = [
            NSLocalizedDescriptionKey: reason, NSLocalizedFailureReasonErrorKey: reason,
            "NSLocalizedFailure": failure,
        ]
        if let underlying { info[NSUnderlyingErrorKey] = underlying as NSError }
        self.init(code, userInfo: info)
    }

    static func configuration(_ reason: String, underlying: (any Error)? = nil) -> VZError {
        VZError(
            .invalidVirtualMachineConfiguration, failure: "Invalid virtual machine configuration.",
            reason: reason,
            underlying: underlying)
    }

    /// A change of state that cannot be.
    init(from: VZVirtualMachine.State, to: VZVirtualMachine.State) {
        self.init(
            .invalidVirtualMachineStateTransition, failure: "Invalid virtual machine state transition.",
            reason: "Transition from state “\(from)” to state “\(to)” is invalid.")
    }

    /// Something that cannot be asked in a state.
    init(_ state: VZVirtualMachine.State, invalidFor what: String) {
        self.init(
            .invalidVirtualMachineState, failure: "Invalid virtual machine state.",
            reason: "Virtual machine state “\(state)” is invalid for \(what).")
    }

    /// A guest that ended when it should not.
    init(ended reason: String) {
        self.init(.internalError, failure: "Internal virtualization error.", reason: reason)
    }

    static func disk(_ reason: String, underlying: (any Error)? = nil) -> VZError {
        VZError(.invalidDiskImage, failure: "Invalid disk image.", reason: reason, underlying: underlying)
    }
}

extension NSError {
    static func posix(_ number: Int32) -> NSError {
        NSError(
            domain: NSPOSIXErrorDomain, code: Int(number),
            userInfo: [NSLocalizedDescriptionKey: String(cString: strerror(number))])
    }
}
