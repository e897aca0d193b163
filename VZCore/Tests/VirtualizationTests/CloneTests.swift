import Foundation
import StandInDarwin
import Testing

// swift-format-ignore: AlwaysUseLowerCamelCase
@Suite(.timeLimit(.minutes(5))) struct CloneTests {
    private let workshop: TestDirectory

    init() throws { workshop = try TestDirectory() }

    /// 0 or errno.
    private func clone(_ source: String, _ target: String, flags: Int32 = 0) -> Int32 {
        clonefile(source, target, UInt32(flags)) == 0 ? 0 : errno
    }

    private func path(_ name: String) -> String { workshop.url(name).path }

    @Test func a_clone_has_the_content_mode_and_time_of_its_source() throws {
        let content = Data((0..<3_000_001).map { UInt8(truncatingIfNeeded: $0 / 7) })
        let source = try workshop.file("source", content, mode: 0o640)
        var times = [timespec(tv_sec: 1_000_000, tv_nsec: 5), timespec(tv_sec: 2_000_000, tv_nsec: 7)]
        #expect(utimensat(AT_FDCWD, source.path, &times, 0) == 0)
        #expect(clone(source.path, path("clone")) == 0)
        #expect(try Data(contentsOf: workshop.url("clone")) == content)
        var status = stat()
        #expect(stat(path("clone"), &status) == 0)
        #expect(status.st_mode & 0o7777 == 0o640)
        #expect(status.st_mtim.tv_sec == 2_000_000 && status.st_mtim.tv_nsec == 7)
        #expect(status.st_nlink == 1)
    }

    @Test func a_clone_and_its_source_do_not_see_each_others_changes() throws {
        let source = try workshop.file("source", "same")
        #expect(clone(source.path, path("clone")) == 0)
        try Data("clone".utf8).write(to: workshop.url("clone"))
        #expect(try String(contentsOf: source, encoding: .utf8) == "same")
        #expect(clone(source.path, path("other")) == 0)
        try FileHandle(forWritingTo: source).write(contentsOf: Data("S".utf8))
        #expect(try String(contentsOf: workshop.url("other"), encoding: .utf8) == "same")
    }

    @Test func holes_stay_holes() throws {
        let source = path("source")
        let file = open(source, O_RDWR | O_CREAT | O_CLOEXEC, 0o600)
        try #require(file >= 0)
        let size: off_t = 1 << 33
        #expect(ftruncate(file, size) == 0)
        for offset in [0, size / 2, size - 3] { #expect(pwrite(file, "abc", 3, offset) == 3) }
        close(file)
        #expect(clone(source, path("clone")) == 0)
        var status = stat()
        #expect(stat(path("clone"), &status) == 0)
        #expect(status.st_size == size)
        #expect(status.st_blocks * 512 < 1 << 20)
        let copy = try FileHandle(forReadingFrom: workshop.url("clone"))
        for offset in [0, size / 2, size - 3] {
            try copy.seek(toOffset: UInt64(offset))
            #expect(try copy.read(upToCount: 3) == Data("abc".utf8))
        }
    }

    @Test func an_empty_file_and_one_that_is_all_hole_are_cloned() throws {
        #expect(clone(try workshop.file("empty").path, path("clone")) == 0)
        #expect(try Data(contentsOf: workshop.url("clone")).isEmpty)
        let hole = try workshop.file("hole")
        #expect(truncate(hole.path, 12_345) == 0)
        #expect(clone(hole.path, path("holes")) == 0)
        #expect(try Data(contentsOf: workshop.url("holes")) == Data(count: 12_345))
    }

    @Test func what_is_there_is_not_replaced() throws {
        let source = try workshop.file("source", "new").path
        let target = try workshop.file("target", "old")
        #expect(clone(source, target.path) == EEXIST)
        #expect(try String(contentsOf: target, encoding: .utf8) == "old")
        #expect(symlink("nowhere", path("link")) == 0)
        #expect(clone(source, path("link")) == EEXIST)
        #expect(clone(source, workshop.path) == EEXIST)
    }

    @Test func another_volume_is_refused() throws {
        let source = try workshop.file("source", "x").path
        let other = "/dev/shm/vz-clone-\(UUID().uuidString)"
        var here = stat()
        var there = stat()
        try #require(stat(workshop.path, &here) == 0 && stat("/dev/shm", &there) == 0)
        try #require(here.st_dev != there.st_dev, "the test needs /dev/shm to be a separate file system")
        #expect(clone(source, other) == EXDEV)
        #expect(access(other, F_OK) != 0)
    }

    @Test func errors_are_those_of_the_system_call() throws {
        let source = try workshop.file("source", "x").path
        #expect(clone(path("missing"), path("clone")) == ENOENT)
        #expect(clone(source, path("missing/clone")) == ENOENT)
        #expect(clone(source, source + "/clone") == ENOTDIR)
        #expect(clone(source, path("clone"), flags: 0x80) == EINVAL)
        #expect(mkfifo(path("fifo"), 0o600) == 0)
        #expect(clone(path("fifo"), path("clone")) == ENOTSUP)
        #expect(
            try FileManager.default.contentsOfDirectory(atPath: workshop.path).sorted() == ["fifo", "source"])
    }

    @Test func a_link_is_followed_by_default() throws {
        _ = try workshop.file("source", "content")
        #expect(symlink("source", path("link")) == 0)
        #expect(clone(path("link"), path("file")) == 0)
        #expect(try String(contentsOf: workshop.url("file"), encoding: .utf8) == "content")
        #expect(clone(path("link"), path("other"), flags: CLONE_NOFOLLOW) == 0)
        #expect(try FileManager.default.destinationOfSymbolicLink(atPath: path("other")) == "source")
    }

    @Test func a_directory_is_cloned_with_what_is_in_it_or_not_at_all() throws {
        let inner = path("tree/inner")
        try FileManager.default.createDirectory(atPath: inner, withIntermediateDirectories: true)
        try Data("deep".utf8).write(to: URL(fileURLWithPath: inner + "/file"))
        #expect(chmod(path("tree"), 0o750) == 0)
        #expect(clone(path("tree"), path("copy")) == 0)
        #expect(try String(contentsOf: workshop.url("copy/inner/file"), encoding: .utf8) == "deep")
        var status = stat()
        #expect(stat(path("copy"), &status) == 0 && status.st_mode & 0o777 == 0o750)
        #expect(mkfifo(inner + "/fifo", 0o600) == 0)
        #expect(clone(path("tree"), path("again")) == ENOTSUP)
        #expect(access(path("again"), F_OK) != 0)
    }

    @Test func bits_that_lend_rights_are_not_cloned() throws {
        let source = try workshop.file("source", "x", mode: 0o4755)
        #expect(clone(source.path, path("clone")) == 0)
        var status = stat()
        #expect(stat(path("clone"), &status) == 0 && status.st_mode & 0o7777 == 0o755)
    }
}
