import Darwin
import Foundation
import Virtualization

/// Bundles: made from a template in milliseconds, whatever the disk's size.
public enum Bundles {
    /// Makes a VM's files in `bundle` out of `template`: `Disk.img` and, where the template has them, `AuxiliaryStorage`
    /// and `EFIVariableStore` by `clonefile(2)`, a copy of `HardwareModel.json`, and last a fresh `MachineIdentifier`. A bundle without
    /// that one is unfinished, and `Machine` refuses it.
    ///
    /// The directory is made (0700) unless it is there; files in it that are not a VM's do not matter. On failure
    /// everything made here is taken away again.
    ///
    /// - Parameters:
    ///   - template: a directory, absolute.
    ///   - bundle: a directory, absolute, on the same volume.
    ///   - os: decides which files there must be.
    ///   - diskBytes: how large the disk is to be at least, whole 512-byte sectors; 0 = as the template's.
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
            throw undo.undone(after: error)
        }
    }
}

/// One template on its way into one bundle.
private struct CloneJob {
    let from: BundleFiles
    let to: BundleFiles
    let os: MachineSpec.OS
    let diskBytes: UInt64

    private var doing: String { "cloning \(from.directory) to \(to.directory)" }

    /// Everything that can be known before anything is made.
    func check() throws(VZFailure) {
        guard diskBytes.isMultiple(of: 512) else {
            throw refused(.badSpec, "a disk has whole sectors of 512 bytes, not \(diskBytes) bytes")
        }
        if os == .macos { _ = try from.readHardwareModel() }
        for (source, copy) in try clones() {
            let (file, parent) = (try status(source), try status(existingDirectory))
            // A clone of a link would be the template's own file.
            guard file.st_mode & S_IFMT == S_IFREG else {
                throw refused(.invalidConfiguration, "\(source) is no regular file")
            }
            guard file.st_dev == parent.st_dev else {
                throw refused(
                    .differentVolume,
                    "they are on different volumes, and only a clone within one is made at once")
            }
            try refuseExisting(copy)
        }
        try refuseExisting(to.hardwareModel)
        try refuseExisting(to.machineIdentifier)
        if try grows { try refuseSparseImage() }
    }

    func make(_ undo: inout Undo) throws(VZFailure) {
        if mkdir(to.directory, 0o700) == 0 {
            undo.made(directory: to.directory)
        } else if errno != EEXIST {
            throw VZFailure(errno: errno, doing: "\(doing): making the bundle")
        }
        for (source, copy) in try clones() {
            guard clonefile(source, copy, UInt32(CLONE_NOFOLLOW)) == 0 else {
                throw cloneFailure(errno, source, copy)
            }
            undo.made(file: copy)
            guard chmod(copy, 0o600) == 0 else {
                throw VZFailure(errno: errno, doing: "\(doing): closing \(copy)")
            }
        }
        if try grows {
            guard truncate(to.disk, off_t(clamping: diskBytes)) == 0 else {
                throw VZFailure(errno: errno, doing: "\(doing): growing the disk to \(diskBytes) bytes")
            }
        }
        if os == .macos {
            let bytes = try from.readHardwareModel().dataRepresentation
            try undo.making(to.hardwareModel) { () throws(VZFailure) in try to.writeHardwareModel(bytes) }
        }
        try undo.making(to.machineIdentifier) { () throws(VZFailure) in try to.writeIdentifier(for: os) }
    }

    /// What is cloned, and where to.
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

    /// An ASIF image (macOS 26) knows its size; making the file longer would not make the disk longer.
    private func refuseSparseImage() throws(VZFailure) {
        let magic = Data("shdw".utf8)
        guard let file = FileHandle(forReadingAtPath: from.disk),
            let start = try? file.read(upToCount: magic.count)
        else { throw VZFailure(errno: errno, doing: "\(doing): reading \(from.disk)") }
        if start == magic {
            throw refused(
                .notSupported,
                "\(from.disk) is an ASIF image, which cannot be grown here; "
                    + "grow the template's, or ask for its size (0)")
        }
    }

    private func refuseExisting(_ path: String) throws(VZFailure) {
        var found = stat()
        if lstat(path, &found) == 0 {
            throw refused(.exists, "\(path) is there already; remove that VM first")
        }
    }

    /// The bundle, or where it will be.
    private var existingDirectory: String {
        access(to.directory, F_OK) == 0 ? to.directory : (to.directory as NSString).deletingLastPathComponent
    }

    private func status(_ path: String) throws(VZFailure) -> stat {
        var found = stat()
        guard lstat(path, &found) == 0 else {
            throw VZFailure(errno: errno, doing: "\(doing): looking at \(path)")
        }
        return found
    }

    private func cloneFailure(_ reason: Int32, _ source: String, _ copy: String) -> VZFailure {
        let code: FailureCode =
            switch reason {
            case EXDEV: .differentVolume
            case EEXIST: .exists
            case ENOTSUP: .notSupported
            default: .io
            }
        let failure = VZFailure(
            errno: reason, doing: "\(doing): clonefile \(source) \(copy)", otherwise: code)
        guard reason == ENOTSUP else { return failure }
        return VZFailure(code: code, message: failure.message + "; only APFS volumes can clone")
    }

    private func refused(_ code: FailureCode, _ why: String) -> VZFailure {
        VZFailure(code: code, message: "\(doing): \(why)")
    }
}

/// What was made, and is taken away when the rest fails: this and nothing else.
private struct Undo {
    private var directory: String?
    private var files: [String] = []

    mutating func made(directory: String) { self.directory = directory }
    mutating func made(file: String) { files.append(file) }

    /// Counts a file as made even if it is only half written; not if it was there before.
    mutating func making(_ file: String, _ write: () throws(VZFailure) -> Void) throws(VZFailure) {
        do {
            try write()
        } catch {
            if error.code != .exists { made(file: file) }
            throw error
        }
        made(file: file)
    }

    func undone(after failure: VZFailure) -> VZFailure {
        var left: [String] = []
        for file in files where unlink(file) != 0 && errno != ENOENT { left.append(file) }
        // Another's files in it are not ours to speak of.
        if let directory, rmdir(directory) != 0, errno != ENOENT, errno != ENOTEMPTY {
            left.append(directory)
        }
        guard !left.isEmpty else { return failure }
        return VZFailure(
            code: failure.code,
            message: "\(failure.message); and this could not be removed: \(left.joined(separator: ", "))")
    }
}
