import Darwin
import Foundation
import Virtualization

/// What kind of failure, for code that must decide. The numbers cross the seam to Rust and never change.
public enum FailureCode: Int32, CaseIterable, Sendable {
    /// It was done.
    case ok = 0
    /// The settings are no valid JSON, or wrong; the message tells every mistake.
    case badSpec = 1
    /// The framework refuses the configuration.
    case invalidConfiguration = 2
    /// Not in this state.
    case invalidState = 3
    /// The host runs as many VMs as macOS allows.
    case limitExceeded = 4
    /// The host's disk is full.
    case diskFull = 5
    /// The disk image is damaged, in use, or no disk image.
    case diskImage = 6
    /// This host or framework cannot do it.
    case notSupported = 7
    /// The state could not be saved.
    case saveFailed = 8
    /// The saved state was refused; boot instead.
    case restoreFailed = 9
    /// The network.
    case network = 10
    /// A file operation failed.
    case io = 11
    /// A clone must be on its template's volume.
    case differentVolume = 12
    /// What was to be made is there already.
    case exists = 13
    /// Not within the deadline.
    case timedOut = 14
    /// No machine of this number any more.
    case noSuchMachine = 15
    /// Whoever asked gave up, or the machine was closed meanwhile.
    case cancelled = 16
    /// The installation of macOS failed.
    case installFailed = 17
    /// Nobody in the guest answers on that port.
    case connectFailed = 18
    /// The framework's own error, or one this version does not know.
    case internalError = 19
}

/// What was not done, and why.
public struct VZFailure: Error, Sendable, Equatable, CustomStringConvertible {
    /// Which kind.
    public let code: FailureCode
    /// What was tried, on what, and why it failed: "starting the VM of /b: The disk is full. (VZErrorDomain 8)".
    public let message: String

    /// A failure of that kind, in those words.
    public init(code: FailureCode, message: String) {
        self.code = code
        self.message = message
    }

    public var description: String { message }
}

extension VZFailure {
    /// What the framework, Foundation or the kernel said while `doing` ("starting the VM of /b").
    /// `otherwise` is the code for an error that names no reason this version knows.
    init(_ error: any Error, doing: String, otherwise: FailureCode = .internalError) {
        let error = error as NSError
        let code = Self.code(of: error) ?? otherwise
        var message = "\(doing): \(Self.words(of: error))"
        if code == .limitExceeded { message += "; \(Self.limitAdvice)" }
        self.init(code: code, message: message)
    }

    /// The same, where only one kind is possible.
    init(_ error: any Error, doing: String, always code: FailureCode) {
        self.init(code: code, message: "\(doing): \(Self.words(of: error as NSError))")
    }

    /// What a system call's `errno` means.
    init(errno: Int32, doing: String, otherwise: FailureCode = .io) {
        self.init(NSError(domain: NSPOSIXErrorDomain, code: Int(errno)), doing: doing, otherwise: otherwise)
    }

    private static let limitAdvice =
        "macOS runs two macOS VMs at a time on one host, whoever started them: see which other programs run some, "
        + "and if none does, restart the host (macOS sometimes keeps counting a VM that is gone)"

    private static func code(of error: NSError) -> FailureCode? {
        switch error.domain {
        case VZError.errorDomain: VZError.Code(rawValue: error.code).flatMap(FailureCode.init)
        case NSPOSIXErrorDomain:
            fullDisk.contains(Int32(error.code)) ? .diskFull : underlying(error).flatMap(code)
        case NSCocoaErrorDomain where error.code == CocoaError.fileWriteOutOfSpace.rawValue: .diskFull
        default: underlying(error).flatMap(code)
        }
    }

    private static let fullDisk: Set<Int32> = [ENOSPC, EDQUOT]

    /// The error's own words, then those of the errors under it.
    private static func words(of error: NSError) -> String {
        var words = error.localizedDescription
        if let reason = error.localizedFailureReason, !words.contains(reason) { words += " \(reason)" }
        words += " (\(error.domain) \(error.code))"
        if let cause = underlying(error) { words += ", because: \(self.words(of: cause))" }
        return words
    }

    private static func underlying(_ error: NSError) -> NSError? {
        (error.userInfo[NSUnderlyingErrorKey] as? any Error).map { $0 as NSError }
    }
}

extension FailureCode {
    /// The one table of the framework's codes (SDK 26.5, `VZErrorCode`); nil for one of a later SDK.
    init?(_ code: VZError.Code) {
        switch code {
        case .internalError: self = .internalError
        case .invalidVirtualMachineConfiguration: self = .invalidConfiguration
        case .invalidVirtualMachineState, .invalidVirtualMachineStateTransition: self = .invalidState
        case .invalidDiskImage: self = .diskImage
        case .virtualMachineLimitExceeded: self = .limitExceeded
        case .networkError: self = .network
        case .outOfDiskSpace: self = .diskFull
        case .operationCancelled: self = .cancelled
        case .notSupported: self = .notSupported
        case .save: self = .saveFailed
        case .restore: self = .restoreFailed
        case .restoreImageCatalogLoadFailed, .invalidRestoreImageCatalog, .noSupportedRestoreImagesInCatalog,
            .restoreImageLoadFailed, .invalidRestoreImage, .installationRequiresUpdate, .installationFailed:
            self = .installFailed
        case .networkBlockDeviceNegotiationFailed, .networkBlockDeviceDisconnected: self = .network
        case .usbControllerNotFound, .deviceInitializationFailure, .deviceNotFound:
            self = .invalidConfiguration
        case .deviceAlreadyAttached: self = .invalidState
        @unknown default: return nil
        }
    }
}
