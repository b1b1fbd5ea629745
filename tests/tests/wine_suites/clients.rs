//! Windows clients of Linux servers: cmake's downloader (libcurl) and plink (WSAEventSelect).

use std::fs::{self, File};

use sgm_tests::world::{free_port, same_content};

use crate::stage::{twice, twice_carried, z};

#[test]
fn cmake() {
    // Larger than the kernel's buffers: the server must still be sending when the client has seen that it pays. A reader that
    // gets no CPU for a while has a part come over TCP.
    twice_carried(4 << 20, |stage| {
        let port = free_port();
        let original = stage.world.random_file("original", 32 << 20);
        let arguments = [
            "-m",
            "http.server",
            "--bind",
            "127.0.0.1",
            &port.to_string(),
        ];
        let server = stage.world.command("python3", "python3", &arguments);
        let server = stage.world.serve(server, port);
        let script = format!(
            "file(DOWNLOAD http://127.0.0.1:{port}/original {}/copy STATUS status)\nmessage(STATUS \"${{status}}\")\n",
            z(stage.world.scratch.path())
        );
        fs::write(stage.file("download.cmake"), script).unwrap();
        let mut command = stage.windows("cmake", "bin/cmake.exe");
        command.args(["-P", "download.cmake"]);
        let ended = stage.run("cmake", command);
        server.stop();
        let same = same_content(&stage.file("copy"), &original);
        format!("{}{same}", ended.output)
    });
}

/// It wants urgent bytes inline, and such a connection stays TCP.
#[test]
fn plink() {
    twice(|stage| {
        let port = free_port();
        let server = stage
            .world
            .python("echo_server.py", &["threading", &port.to_string()]);
        let server = stage.world.serve(server, port);
        let sent = stage.world.random_file("sent", 1 << 20);
        let mut command = stage.windows("plink", "plink.exe");
        command.args(["-batch", "-raw", "-P", &port.to_string(), "127.0.0.1"]);
        command.stdin(File::open(&sent).unwrap());
        stage.run("plink", command);
        server.stop();
        same_content(&stage.file("plink.out"), &sent).to_string()
    });
}
