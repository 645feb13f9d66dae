// node bundle.mjs OUT: the page as one file.
import { build } from 'esbuild';

await build({
  entryPoints: [new URL('main.jsx', import.meta.url).pathname],
  bundle: true,
  outfile: process.argv[2],
  format: 'iife',
  platform: 'browser',
  define: { 'process.env.NODE_ENV': '"production"', global: 'window' },
  loader: { '.css': 'text', '.svg': 'dataurl', '.png': 'dataurl', '.woff2': 'dataurl', '.woff': 'dataurl', '.ttf': 'dataurl' },
  logLevel: 'error',
});
