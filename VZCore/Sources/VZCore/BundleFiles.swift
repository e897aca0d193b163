import Darwin
import Foundation
import Virtualization

/// The files of a template or bundle, in the Go implementation's names and formats.
struct BundleFiles {
    let directory: String

    init(_ directory: String) { self.directory = directory }

    /// Template and bundle: the guest's disk, raw or ASIF.
    var disk: String { path("Disk.img") }
    /// Template and bundle of macOS: `VZMacAuxiliaryStorage`.
    var auxiliaryStorage: String { path("AuxiliaryStorage") }
    /// Template and bundle of macOS: `{"hardwareModel":"<base64>"}`.
    var hardwareModel: String { path("HardwareModel.json") }
    /// Bundle: `VZMacMachineIdentifier` or `VZGenericMachineIdentifier`, as their bytes.
    var machineIdentifier: String { path("MachineIdentifier") }
    /// Template and bundle of Linux with EFI: `VZEFIVariableStore`; the first start creates it.
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
                reason:
                    "reading \(hardwareModel): it is not {\"hardwareModel\": \"<base64>\"} with a valid hardware model"
            )
        }
        guard model.isSupported else {
            throw VZFailure(
                code: .notSupported,
                reason: "reading \(hardwareModel): this host cannot run that hardware model; "
                    + "its macOS needs a newer macOS on this host, or another Mac")
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

    func writeIdentifier(for os: MachineSpec.OS) throws(VZFailure) {
        switch os {
        case .macos: try create(machineIdentifier, VZMacMachineIdentifier().dataRepresentation)
        case .linux: try create(machineIdentifier, VZGenericMachineIdentifier().dataRepresentation)
        }
    }

    private var brokenIdentifier: VZFailure {
        VZFailure(
            code: .invalidConfiguration,
            reason:
                "reading \(machineIdentifier): it does not hold a valid machine identifier; clone the bundle again"
        )
    }

    /// The URL of an existing, readable file.
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

    /// Creates a file that does not exist yet, with mode 0600.
    private func create(_ path: String, _ data: Data) throws(VZFailure) {
        let file = try NewFile(path)
        do {
            try FileHandle(fileDescriptor: file.descriptor).write(contentsOf: data)
        } catch {
            throw VZFailure(error, doing: "writing \(path)", otherwise: .io)
        }
    }
}

/// A file that this value created, open for writing until the value is destroyed.
struct NewFile: ~Copyable {
    let descriptor: Int32
    private let path: String

    /// - Throws: `exists`, `diskFull`, `io`.
    init(_ path: String) throws(VZFailure) {
        self.path = path
        descriptor = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0o600)
        let error = errno
        guard descriptor >= 0 else {
            throw VZFailure(
                errno: error, doing: "creating \(path)", otherwise: error == EEXIST ? .exists : .io)
        }
    }

    deinit { close(descriptor) }

    /// Extends it to that size as a sparse file.
    func extend(to bytes: UInt64) throws(VZFailure) {
        guard ftruncate(descriptor, off_t(clamping: bytes)) == 0 else {
            throw VZFailure(errno: errno, doing: "extending \(path) to \(bytes) bytes")
        }
    }
}
