import Darwin
import Foundation
import Virtualization

/// The files of a template or bundle, in the Go implementation's names and formats.
struct BundleFiles {
    let directory: String

    init(_ directory: String) { self.directory = directory }

    /// Both: the guest's disk, raw or ASIF.
    var disk: String { path("Disk.img") }
    /// Both, macOS: `VZMacAuxiliaryStorage`.
    var auxiliaryStorage: String { path("AuxiliaryStorage") }
    /// Both, macOS: `{"hardwareModel":"<base64>"}`.
    var hardwareModel: String { path("HardwareModel.json") }
    /// Bundle: `VZMacMachineIdentifier` or `VZGenericMachineIdentifier`, as their bytes.
    var machineIdentifier: String { path("MachineIdentifier") }
    /// Both, Linux by EFI: `VZEFIVariableStore`; made by the first start.
    var variableStore: String { path("EFIVariableStore") }

    private func path(_ name: String) -> String { directory + "/" + name }

    private struct HardwareModelFile: Codable {
        /// Base64 in the file.
        let hardwareModel: Data
    }

    /// - Throws: `io`, `invalidConfiguration`, and `notSupported` for a model this host cannot run.
    func readHardwareModel() throws(VZFailure) -> VZMacHardwareModel {
        let data = try read(hardwareModel)
        guard let bytes = try? JSONDecoder().decode(HardwareModelFile.self, from: data).hardwareModel,
            let model = VZMacHardwareModel(dataRepresentation: bytes)
        else {
            throw VZFailure(
                code: .invalidConfiguration,
                message:
                    "reading \(hardwareModel): it is no {\"hardwareModel\": \"<base64>\"} with a model in it")
        }
        guard model.isSupported else {
            throw VZFailure(
                code: .notSupported,
                message: "reading \(hardwareModel): this host cannot run that hardware model; "
                    + "its macOS wants a newer macOS here, or another Mac")
        }
        return model
    }

    func writeHardwareModel(_ bytes: Data) throws(VZFailure) {
        do {
            try create(hardwareModel, try JSONEncoder().encode(HardwareModelFile(hardwareModel: bytes)))
        } catch {
            throw error as? VZFailure ?? VZFailure(error, doing: "writing \(hardwareModel)", otherwise: .io)
        }
    }

    func readMacIdentifier() throws(VZFailure) -> VZMacMachineIdentifier {
        guard let identifier = VZMacMachineIdentifier(dataRepresentation: try read(machineIdentifier)) else {
            throw brokenIdentifier
        }
        return identifier
    }

    func readGenericIdentifier() throws(VZFailure) -> VZGenericMachineIdentifier {
        guard let identifier = VZGenericMachineIdentifier(dataRepresentation: try read(machineIdentifier))
        else {
            throw brokenIdentifier
        }
        return identifier
    }

    /// A new identity.
    func writeIdentifier(for os: MachineSpec.OS) throws(VZFailure) {
        switch os {
        case .macos: try create(machineIdentifier, VZMacMachineIdentifier().dataRepresentation)
        case .linux: try create(machineIdentifier, VZGenericMachineIdentifier().dataRepresentation)
        }
    }

    private var brokenIdentifier: VZFailure {
        VZFailure(
            code: .invalidConfiguration,
            message: "reading \(machineIdentifier): it holds no machine identifier; clone the bundle again")
    }

    /// The URL of a file that is there.
    func existing(_ path: String) throws(VZFailure) -> URL {
        guard access(path, R_OK) == 0 else { throw VZFailure(errno: errno, doing: "reading \(path)") }
        return URL(fileURLWithPath: path)
    }

    private func read(_ path: String) throws(VZFailure) -> Data {
        do {
            return try Data(contentsOf: existing(path))
        } catch {
            throw error as? VZFailure ?? VZFailure(error, doing: "reading \(path)", otherwise: .io)
        }
    }

    /// Makes a file that is not there yet, closed to others.
    private func create(_ path: String, _ data: Data) throws(VZFailure) {
        let file = try NewFile(path)
        do {
            try FileHandle(fileDescriptor: file.descriptor).write(contentsOf: data)
        } catch {
            throw VZFailure(error, doing: "writing \(path)", otherwise: .io)
        }
    }
}

/// A file this made, open for writing until it goes away.
struct NewFile: ~Copyable {
    let descriptor: Int32
    private let path: String

    /// - Throws: `exists`, `diskFull`, `io`.
    init(_ path: String) throws(VZFailure) {
        self.path = path
        descriptor = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0o600)
        let reason = errno
        guard descriptor >= 0 else {
            throw VZFailure(
                errno: reason, doing: "making \(path)", otherwise: reason == EEXIST ? .exists : .io)
        }
    }

    deinit { close(descriptor) }

    /// Makes it that long, without taking space for it.
    func extend(to bytes: UInt64) throws(VZFailure) {
        guard ftruncate(descriptor, off_t(clamping: bytes)) == 0 else {
            throw VZFailure(errno: errno, doing: "making \(path) \(bytes) bytes long")
        }
    }
}
