import Foundation

/// What plays a restore image: a JSON object with `build` ("25A354"), `version` ("26.0"), and, each optional,
/// `hardware_model` (base64; one every host supports unless given), `minimum_cpus` (2),
/// `minimum_memory_bytes` (4 GiB), and `boot_program`: the script an installation puts at the beginning of
/// the disk. Without one the disk gets a line that says what was installed, and boots nothing.
struct RestoreImageFile: Decodable, Sendable {
    let build: String
    let version: String
    var hardwareModel: Data?
    var minimumCpus: Int?
    var minimumMemoryBytes: UInt64?
    var bootProgram: String?

    /// Throws `VZError.restoreImageLoadFailed` for what cannot be read or is not JSON, `.invalidRestoreImage`
    /// for other JSON.
    static func read(_ url: URL) throws -> RestoreImageFile {
        let content: Data
        do {
            content = try Data(contentsOf: url)
            _ = try JSONSerialization.jsonObject(with: content)
        } catch {
            throw VZError(
                .restoreImageLoadFailed, failure: "The restore image failed to load.",
                reason: "The restore image \(url.path) cannot be read.", underlying: error)
        }
        let decoder = JSONDecoder()
        decoder.keyDecodingStrategy = .convertFromSnakeCase
        do {
            let file = try decoder.decode(RestoreImageFile.self, from: content)
            guard file.hardware != nil else { throw invalid(url, nil) }
            return file
        } catch let error as VZError {
            throw error
        } catch {
            throw invalid(url, error)
        }
    }

    var hardware: VZMacHardwareModel? {
        guard let hardwareModel else { return .make(minimumOS: [13, 0, 0]) }
        return VZMacHardwareModel(dataRepresentation: hardwareModel)
    }

    var requirements: VZMacOSConfigurationRequirements? {
        guard let hardware, hardware.isSupported else { return nil }
        return VZMacOSConfigurationRequirements(
            hardwareModel: hardware, minimumCPUs: minimumCpus ?? 2,
            minimumMemory: minimumMemoryBytes ?? 4 << 30)
    }

    var operatingSystemVersion: OperatingSystemVersion {
        let parts = version.split(separator: ".").map { Int($0) ?? 0 } + [0, 0, 0]
        return OperatingSystemVersion(majorVersion: parts[0], minorVersion: parts[1], patchVersion: parts[2])
    }

    /// What the disk begins with after an installation.
    var diskBeginning: Data {
        Data((bootProgram ?? "macOS \(version) (\(build)) was installed here\n").utf8) + [0]
    }

    private static func invalid(_ url: URL, _ error: (any Error)?) -> VZError {
        VZError(
            .invalidRestoreImage, failure: "The restore image is invalid.",
            reason: "The restore image \(url.path) is invalid.", underlying: error)
    }
}
