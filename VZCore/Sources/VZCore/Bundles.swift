import Darwin
import Foundation
import Virtualization

/// Clones bundles from templates in milliseconds, whatever the disk's size.
public enum Bundles {
    /// Creates a VM's files in `bundle` from `template`: `Disk.img` and, where the template has them, `AuxiliaryStorage`
    /// and `EFIVariableStore` by `clonefile(2)`, a copy of `HardwareModel.json`, and last a fresh `MachineIdentifier`. A bundle without
    /// that one is unfinished, and `Machine` refuses it.
    ///
    /// The directory is created (0700) unless it exists; files in it that are not a VM's do not matter. On failure
    /// everything created here is removed.
    ///
    /// - Parameters:
    ///   - template: a directory, absolute.
    ///   - bundle: a directory, absolute, on the same volume.
    ///   - os: decides which files there must be.
    ///   - diskBytes: minimum size of the disk, a multiple of 512; 0 = the template's size.
    /// - Throws: `differentVolume`, `exists`, `notSupported`, `badSpec`, `invalidConfiguration`, `diskFull`, `io`.
    public static func clone(
        template: String, bundle: String, os: MachineSpec.OS, diskBytes: UInt64 = 0
    ) throws(VZFailure) {
        let job = CloneJob(from: BundleFiles(template), to: BundleFiles(bundle), os: os, diskBytes: diskBytes)
        try job.check()
        var undo = Undo()
        do {
            try job.make(&undo)
        } catch {
            throw undo.cleanUp(after: error)
        }
    }
}

/// Clones one template into one bundle.
private struct CloneJob {
    let from: BundleFiles
    let to: BundleFiles
    let os: MachineSpec.OS
    let diskBytes: UInt64

    private var doing: String { "cloning \(from.directory) to \(to.directory)" }

    /// Checks everything that can be checked before anything is created.
    func check() throws(VZFailure) {
        guard diskBytes.isMultiple(of: 512) else {
            throw refused(.badSpec, "the disk size must be a multiple of 512 bytes, not \(diskBytes)")
        }
        if os == .macos { _ = try from.readHardwareModel() }
        for (source, copy) in try clones() {
            let (file, parent) = (try status(source), try status(existingDirectory))
            // A clone of a link would be the template's own file.
            guard file.st_mode & S_IFMT == S_IFREG else {
                throw refused(.invalidConfiguration, "\(source) is not a regular file")
            }
            guard file.st_dev == parent.st_dev else {
                throw refused(
                    .differentVolume,
                    "they are on different volumes; clonefile(2) works within one volume only")
            }
            try refuseExisting(copy)
        }
        try refuseExisting(to.hardwareModel)
        try refuseExisting(to.machineIdentifier)
        if try grows { try refuseSparseImage() }
    }

    func make(_ undo: inout Undo) throws(VZFailure) {
        if mkdir(to.directory, 0o700) == 0 {
            undo.created(directory: to.directory)
        } else if errno != EEXIST {
            throw VZFailure(errno: errno, doing: "\(doing): creating the bundle")
        }
        for (source, copy) in try clones() {
            guard clonefile(source, copy, UInt32(CLONE_NOFOLLOW)) == 0 else {
                throw cloneFailure(errno, source, copy)
            }
            undo.created(file: copy)
            guard chmod(copy, 0o600) == 0 else {
                throw VZFailure(errno: errno, doing: "\(doing): setting the mode of \(copy)")
            }
        }
        if try grows {
            guard truncate(to.disk, off_t(clamping: diskBytes)) == 0 else {
                throw VZFailure(errno: errno, doing: "\(doing): growing the disk to \(diskBytes) bytes")
            }
        }
        if os == .macos {
            let bytes = try from.readHardwareModel().dataRepresentation
            try undo.creating(to.hardwareModel) { () throws(VZFailure) in try to.writeHardwareModel(bytes) }
        }
        try undo.creating(to.machineIdentifier) { () throws(VZFailure) in try to.writeIdentifier(for: os) }
    }

    /// Each source file and its copy.
    private func clones() throws(VZFailure) -> [(String, String)] {
        var clones = [(from.disk, to.disk)]
        switch os {
        case .macos: clones.append((from.auxiliaryStorage, to.auxiliaryStorage))
        case .linux:
            if access(from.variableStore, F_OK) == 0 { clones.append((from.variableStore, to.variableStore)) }
        }
        return clones
    }

    private var grows: Bool {
        get throws(VZFailure) { diskBytes > UInt64(clamping: try status(from.disk).st_size) }
    }

    /// An ASIF image (macOS 26) records its size; a longer file would not make the disk larger.
    private func refuseSparseImage() throws(VZFailure) {
        let magic = Data("shdw".utf8)
        guard let file = FileHandle(forReadingAtPath: from.disk),
            let start = try? file.read(upToCount: magic.count)
        else { throw VZFailure(errno: errno, doing: "\(doing): reading \(from.disk)") }
        if start == magic {
            throw refused(
                .notSupported,
                "\(from.disk) is an ASIF image, which cannot be grown here; "
                    + "grow the template's disk, or request its size (0)")
        }
    }

    private func refuseExisting(_ path: String) throws(VZFailure) {
        var found = stat()
        if lstat(path, &found) == 0 {
            throw refused(.exists, "\(path) already exists; remove that VM first")
        }
    }

    /// The bundle, or the directory it will be in.
    private var existingDirectory: String {
        access(to.directory, F_OK) == 0 ? to.directory : (to.directory as NSString).deletingLastPathComponent
    }

    private func status(_ path: String) throws(VZFailure) -> stat {
        var found = stat()
        guard lstat(path, &found) == 0 else {
            throw VZFailure(errno: errno, doing: "\(doing): reading the status of \(path)")
        }
        return found
    }

    private func cloneFailure(_ error: Int32, _ source: String, _ copy: String) -> VZFailure {
        let code: FailureCode =
            switch error {
            case EXDEV: .differentVolume
            case EEXIST: .exists
            case ENOTSUP: .notSupported
            default: .io
            }
        let failure = VZFailure(
            errno: error, doing: "\(doing): clonefile \(source) \(copy)", otherwise: code)
        guard error == ENOTSUP else { return failure }
        return VZFailure(code: code, reason: failure.reason + "; only APFS supports clones")
    }

    private func refused(_ code: FailureCode, _ reason: String) -> VZFailure {
        VZFailure(code: code, reason: "\(doing): \(reason)")
    }
}

/// The files created so far, which are removed when a later step fails: these and nothing else.
private struct Undo {
    private var directory: String?
    private var files: [String] = []

    mutating func created(directory: String) { self.directory = directory }
    mutating func created(file: String) { files.append(file) }

    /// Counts a file as created even if it is only partly written, but not if it existed before.
    mutating func creating(_ file: String, _ write: () throws(VZFailure) -> Void) throws(VZFailure) {
        do {
            try write()
        } catch {
            if error.code != .exists { created(file: file) }
            throw error
        }
        created(file: file)
    }

    func cleanUp(after failure: VZFailure) -> VZFailure {
        var left: [String] = []
        for file in files where unlink(file) != 0 && errno != ENOENT { left.append(file) }
        // A directory that also holds another program's files is left without a message.
        if let directory, rmdir(directory) != 0, errno != ENOENT, errno != ENOTEMPTY {
            left.append(directory)
        }
        guard !left.isEmpty else { return failure }
        return VZFailure(
            code: failure.code,
            reason: "\(failure.reason); and these could not be removed: \(left.joined(separator: ", "))")
    }
}
