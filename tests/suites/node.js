// node.js server|client HTTP-PORT NET-PORT: an HTTP server and an echo server in one process, their clients in another.
// The client asks 200 times over one kept-alive connection, sends 1 MiB through the echo server, and asks the server to end.
"use strict";
const http = require("node:http");
const net = require("node:net");
const crypto = require("node:crypto");

const [role, httpPort, netPort] = process.argv.slice(2);
const host = "127.0.0.1";
const hash = (data) => crypto.createHash("sha256").update(data).digest("hex");

function serve() {
  const echo = net.createServer((socket) => socket.pipe(socket));
  const web = http.createServer((request, response) => {
    const parts = [];
    request.on("data", (part) => parts.push(part));
    request.on("end", () => {
      const body = Buffer.concat(parts);
      response.end(request.url + " " + body.length + " " + hash(body));
      if (request.url === "/end") {
        echo.close();
        web.close();
        response.on("finish", () => web.closeIdleConnections());
      }
    });
  });
  // The test waits for the HTTP port, so it comes last.
  echo.listen(netPort, host, () => web.listen(httpPort, host));
}

function ask(agent, path, body) {
  return new Promise((resolve, reject) => {
    const request = http.request({ host, port: httpPort, path, agent, method: "POST" }, (response) => {
      let text = "";
      response.setEncoding("utf8");
      response.on("data", (part) => (text += part));
      response.on("end", () => resolve(text));
    });
    request.on("error", reject);
    request.end(body);
  });
}

function mirror(data) {
  return new Promise((resolve, reject) => {
    const parts = [];
    const socket = net.connect(netPort, host, () => socket.end(data));
    socket.on("data", (part) => parts.push(part));
    socket.on("end", () => resolve(Buffer.concat(parts)));
    socket.on("error", reject);
  });
}

async function client() {
  const agent = new http.Agent({ keepAlive: true, maxSockets: 1 });
  let right = 0;
  for (let i = 0; i < 200; i++) {
    const body = Buffer.alloc(i * 50, i);
    const answer = await ask(agent, "/" + i, body);
    if (answer === "/" + i + " " + body.length + " " + hash(body)) right++;
  }
  console.log(right + " of 200 answers right");
  const data = Buffer.alloc(1 << 20);
  for (let i = 0; i < data.length; i++) data[i] = (i * 7 + (i >> 8)) & 255;
  const back = await mirror(data);
  console.log(data.equals(back) ? "the same bytes" : "OTHER BYTES: " + back.length);
  await ask(agent, "/end", "");
  agent.destroy();
}

if (role === "server") serve();
else client().catch((error) => {
  console.error(error);
  process.exitCode = 1;
});
