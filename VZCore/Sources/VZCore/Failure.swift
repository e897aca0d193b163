import Darwin
import Foundation
import Virtualization

/// What kind of failure, for code that must decide. The numbers cross the seam to Rust and never change.
public enum FailureCode: Int32, CaseIterable, Sendable {
    /// Not a failure.
    case ok = 0
    /// The settings are not valid JSON, or a key or value in them is wrong; the reason names it.
    case badSpec = 1
    /// The framework refuses the configuration.
    case invalidConfiguration = 2
    /// The machine's state does not allow the call.
    case invalidState = 3
    /// The host runs as many VMs as macOS allows.
    case limitExceeded = 4
    /// The host's disk is full.
    case diskFull = 5
    /// The disk image is damaged, in use, or not a disk image.
    case diskImage = 6
    /// This host or framework cannot do it.
    case notSupported = 7
    case saveFailed = 8
    /// The saved state was refused; start cold instead.
    case restoreFailed = 9
    case network = 10
    case io = 11
    /// A clone must be on its template's volume.
    case differentVolume = 12
    /// The file or directory to create already exists.
    case exists = 13
    /// Not completed within the deadline.
    case timedOut = 14
    /// There is no open machine with this number.
    case noSuchMachine = 15
    /// The caller cancelled the call, or the machine was closed in the meantime.
    case cancelled = 16
    case installFailed = 17
    /// Nothing in the guest listens on that port.
    case connectFailed = 18
    /// The framework's internal error, or an unknown error.
    case internalError = 19
}

/// A call that failed, and its reason.
public struct VZFailure: Error, Sendable, Equatable, CustomStringConvertible {
    public let code: FailureCode
    /// What was tried, on what, and why it failed: "starting the VM of /b: The disk is full. (VZErrorDomain 8)".
    public let reason: String

    public init(code: FailureCode, reason: String) {
        self.code = code
        self.reason = reason
    }

    public var description: String { reason }
}

extension VZFailure {
    /// An error of the framework, Foundation or the kernel while `doing` ("starting the VM of /b").
    /// `otherwise` is the code for an error whose code is unknown.
    init(_ error: any Error, doing: String, otherwise: FailureCode = .internalError) {
        let error = error as NSError
        let code = Self.code(of: error) ?? otherwise
        var reason = "\(doing): \(Self.describe(error))"
        if code == .limitExceeded { reason += "; \(Self.limitAdvice)" }
        self.init(code: code, reason: reason)
    }

    /// The same, where only one code is possible.
    init(_ error: any Error, doing: String, always code: FailureCode) {
        self.init(code: code, reason: "\(doing): \(Self.describe(error as NSError))")
    }

    /// A system call that failed with this `errno`.
    init(errno: Int32, doing: String, otherwise: FailureCode = .io) {
        self.init(NSError(domain: NSPOSIXErrorDomain, code: Int(errno)), doing: doing, otherwise: otherwise)
    }

    private static let limitAdvice =
        "macOS runs two macOS VMs at a time on one host, across all programs: find other programs that run VMs, "
        + "and if there are none, restart the host (macOS sometimes keeps counting a VM that has ended)"

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

    /// The error's description and reason, then those of its underlying errors.
    private static func describe(_ error: NSError) -> String {
        var text = error.localizedDescription
        if let reason = error.localizedFailureReason, !text.contains(reason) { text += " \(reason)" }
        text += " (\(error.domain) \(error.code))"
        if let cause = underlying(error) { text += ", because: \(describe(cause))" }
        return text
    }

    private static func underlying(_ error: NSError) -> NSError? {
        (error.userInfo[NSUnderlyingErrorKey] as? any Error).map { $0 as NSError }
    }
}

extension VZFailure {
    /// Decodes a JSON text that Rust wrote.
    /// - Throws: `badSpec` with the first key that is missing or has a wrong value.
    public static func decode<Value: Decodable>(
        _ type: Value.Type, _ what: String, _ json: String
    ) throws(VZFailure) -> Value {
        do {
            return try JSONDecoder().decode(type, from: Data(json.utf8))
        } catch {
            throw VZFailure(code: .badSpec, reason: "reading \(what): \(decodingReason(error))")
        }
    }

    private static func decodingReason(_ error: any Error) -> String {
        let path: [any CodingKey]
        let reason: String
        switch error as? DecodingError {
        case .keyNotFound(let key, let context):
            (path, reason) = (context.codingPath + [key], "the key is missing")
        case .typeMismatch(_, let context), .valueNotFound(_, let context), .dataCorrupted(let context):
            (path, reason) = (context.codingPath, context.debugDescription)
        default: return "\(error)"
        }
        return (path.isEmpty ? "" : path.map(\.stringValue).joined(separator: ".") + ": ") + reason
    }
}

extension FailureCode {
    /// The framework's codes (SDK 26.5, `VZErrorCode`); nil for a code of a later SDK.
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
