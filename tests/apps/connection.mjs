// Where keyfence is and who this process is there.
export const tenant = process.env.KEYFENCE_USERNAME;

export const connection = {
  host: process.env.KEYFENCE_HOST,
  port: Number(process.env.KEYFENCE_PORT),
  username: tenant,
  password: process.env.KEYFENCE_PASSWORD,
};

export const url = `redis://${tenant}:${connection.password}@${connection.host}:${connection.port}`;

// Waits until `done()` is true; fails after 8 s.
export async function until(done, what) {
  const deadline = Date.now() + 8000;
  while (!(await done())) {
    if (Date.now() > deadline) throw new Error(`still waiting for ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}
