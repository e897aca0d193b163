import Foundation

// swift-format-ignore: AlwaysUseLowerCamelCase, TypeNamesShouldBeCapitalized
/// The domain of the framework's errors.
// c: VZErrorDomain 11.0
public let VZErrorDomain = "VZErrorDomain"

/// An error of the framework. The SDK imports `VZErrorCode` as an error structure over NSError; this one has
/// the same initializers, `code`, `userInfo` and, seen as NSError, the same domain and code.
// objc: VZErrorCode 11.0
public struct VZError: CustomNSError, @unchecked Sendable {
    /// What went wrong. The numbers are the SDK's.
    // objc: VZErrorCode 11.0
    public enum Code: Int, Sendable {
        // objc: VZErrorCode VZErrorInternal=1 11.0
        case internalError = 1
        // objc: VZErrorCode VZErrorInvalidVirtualMachineConfiguration=2 11.0
        case invalidVirtualMachineConfiguration = 2
        // objc: VZErrorCode VZErrorInvalidVirtualMachineState=3 11.0
        case invalidVirtualMachineState = 3
        // objc: VZErrorCode VZErrorInvalidVirtualMachineStateTransition=4 11.0
        case invalidVirtualMachineStateTransition = 4
        // objc: VZErrorCode VZErrorInvalidDiskImage=5 11.0
        case invalidDiskImage = 5
        // objc: VZErrorCode VZErrorVirtualMachineLimitExceeded=6 12.0
        case virtualMachineLimitExceeded = 6
        // objc: VZErrorCode VZErrorNetworkError=7 13.0
        case networkError = 7
        // objc: VZErrorCode VZErrorOutOfDiskSpace=8 13.0
        case outOfDiskSpace = 8
        // objc: VZErrorCode VZErrorOperationCancelled=9 13.0
        case operationCancelled = 9
        // objc: VZErrorCode VZErrorNotSupported=10 13.0
        case notSupported = 10
        // objc: VZErrorCode VZErrorSave=11 14.0
        case save = 11
        // objc: VZErrorCode VZErrorRestore=12 14.0
        case restore = 12
        // objc: VZErrorCode VZErrorRestoreImageCatalogLoadFailed=10001 13.0
        case restoreImageCatalogLoadFailed = 10001
        // objc: VZErrorCode VZErrorInvalidRestoreImageCatalog=10002 13.0
        case invalidRestoreImageCatalog = 10002
        // objc: VZErrorCode VZErrorNoSupportedRestoreImagesInCatalog=10003 13.0
        case noSupportedRestoreImagesInCatalog = 10003
        // objc: VZErrorCode VZErrorRestoreImageLoadFailed=10004 13.0
        case restoreImageLoadFailed = 10004
        // objc: VZErrorCode VZErrorInvalidRestoreImage=10005 13.0
        case invalidRestoreImage = 10005
        // objc: VZErrorCode VZErrorInstallationRequiresUpdate=10006 13.0
        case installationRequiresUpdate = 10006
        // objc: VZErrorCode VZErrorInstallationFailed=10007 13.0
        case installationFailed = 10007
        // objc: VZErrorCode VZErrorNetworkBlockDeviceNegotiationFailed=20001 14.0
        case networkBlockDeviceNegotiationFailed = 20001
        // objc: VZErrorCode VZErrorNetworkBlockDeviceDisconnected=20002 14.0
        case networkBlockDeviceDisconnected = 20002
        // objc: VZErrorCode VZErrorUSBControllerNotFound=30001 15.0
        case usbControllerNotFound = 30001
        // objc: VZErrorCode VZErrorDeviceAlreadyAttached=30002 15.0
        case deviceAlreadyAttached = 30002
        // objc: VZErrorCode VZErrorDeviceInitializationFailure=30003 15.0
        case deviceInitializationFailure = 30003
        // objc: VZErrorCode VZErrorDeviceNotFound=30004 15.0
        case deviceNotFound = 30004
    }

    /// What went wrong.
    // objc: VZErrorCode 11.0
    public let code: Code
    /// NSError's dictionary: the description, the reason, an underlying error.
    // objc: VZErrorCode 11.0
    public let userInfo: [String: Any]

    /// An error with a code and, if given, NSError's dictionary.
    // objc: VZErrorCode 11.0
    public init(_ code: Code, userInfo: [String: Any] = [:]) {
        self.code = code
        self.userInfo = userInfo
    }

    /// `VZErrorDomain`.
    // c: VZErrorDomain 11.0
    public static var errorDomain: String { VZErrorDomain }
    /// The code's number.
    // objc: VZErrorCode 11.0
    public var errorCode: Int { code.rawValue }
    /// The same as `userInfo`.
    // objc: VZErrorCode 11.0
    public var errorUserInfo: [String: Any] { userInfo }
}
